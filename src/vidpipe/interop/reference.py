"""Checkpoints of the authors' released code -> vidpipe models with the same logits.

Layouts: AIM and ZeroI2V (`backbone.` + `cls_head.fc_cls.`, mmengine) and ST-Adapter (no prefix).
Sizes come from the tensors; what tensors cannot tell (heads, scales, shifts) comes from `meta`, in
the authors' constructor keywords.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError
from timm.layers import QuickGELU
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.openclip import as_tokens, timm_name
from vidpipe.errors import VidpipeError
from vidpipe.interop.aim_swin import build_aim_swin
from vidpipe.methods.aim import AIMConfig
from vidpipe.methods.base import MethodConfig
from vidpipe.methods.registry import VideoModel, build_method
from vidpipe.methods.st_adapter import Position, STAdapterConfig
from vidpipe.methods.zeroi2v import AdapterName, ZeroI2VConfig
from vidpipe.weights import refuse_mismatch

ZEROI2V_ADAPTERS: dict[str, AdapterName] = {
    "T_Adapter_in": "attn_in",
    "T_Adapter_in_q": "attn_in_q",
    "T_Adapter_in_k": "attn_in_k",
    "T_Adapter_in_v": "attn_in_v",
    "S_Adapter": "attn_out",
    "MLP_Adapter": "mlp_in",
    "MLP_Adapter_out": "mlp_out",
}
AIM_ADAPTERS = {
    "T_Adapter_in": "temporal_in",
    "T_Adapter": "temporal",
    "S_Adapter": "spatial",
    "MLP_Adapter": "mlp",
}
ST_POSITIONS: dict[str, Position] = {
    "adapter_pre_attn": "before_attn",
    "adapter_pre_mlp": "before_mlp",
}

# Outside the tower: (pattern, replacement) in order, the authors' name -> ours.
_RENAMES: list[tuple[str, str]] = [
    (r"^(module\.)+", ""),  # of DistributedDataParallel
    (r"^backbone\.", ""),
    (r"^(cls_head\.fc_cls|fc)\.", "head."),
    (r"^temporal_embedding$", "temporal_embedding.weight"),
    (r"\.D_fc([12])\.", r".fc\1."),
]


def our_name(name: str, method: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if name.startswith(("head.", "temporal_embedding.")):
        return name
    # AIM's ImageNet ViT already has timm's names, but for the final norm, which is CLIP's.
    name = f"vit.{timm_name(name)}"
    if match := re.fullmatch(r"vit\.blocks\.(\d+)\.(\w*[aA]dapter\w*)\.(.+)", name):
        index, adapter, rest = match.groups()
        if method == "st_adapter" and adapter in ST_POSITIONS:
            return f"adapters.{index}_{ST_POSITIONS[adapter]}.{rest}"
        table: Mapping[str, str] = AIM_ADAPTERS if method == "aim" else ZEROI2V_ADAPTERS
        if method != "st_adapter" and adapter in table:
            return f"adapters.{index}.{table[adapter]}.{rest}"
    return name


def build_from_reference(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VideoModel:
    """The model a released checkpoint describes, in eval mode, with its weights.

    `state_dict`: a whole model in the authors' layout (AIM, ST-Adapter, ZeroI2V on CLIP ViT, AIM on
    ImageNet ViT and Swin; ZeroI2V also merged). `meta`: `method`, `heads` or `num_heads` and the
    authors' constructor options. Returns a module from (B, 3, T, H, W) to logits; its attribute
    `reference_names` maps our parameter names to the checkpoint's.
    Raises VidpipeError for another layout, missing options, or tensors that do not fit.
    """
    if meta.get("backbone") == "swin":
        return build_aim_swin(state_dict, meta)
    method = str(meta.get("method"))
    if method not in ("aim", "st_adapter", "zeroi2v"):
        raise VidpipeError(f"meta.method: {method!r}; expected aim, st_adapter or zeroi2v")
    if meta.get("backbone", "clip_vit") not in ("clip_vit", "timm_vit"):
        raise VidpipeError(f"meta.backbone: {meta['backbone']!r} cannot be imported yet")
    state, names = translate(state_dict, method)
    if "vit.patch_embed.proj.weight" not in state and any(n.startswith("adapters.") for n in state):
        raise VidpipeError(
            "checkpoint: it holds the trained tensors only, and no backbone; join it with the "
            "backbone's weights by `vidpipe import-checkpoint`"
        )
    vit = _build_vit(state, meta)
    num_frames = frames_of(state, meta)
    config = method_config(method, state, meta)
    _refuse_contradictions(state, meta, config)
    model = build_method(method, vit, state["head.weight"].shape[0], num_frames, config)
    refuse_mismatch("checkpoint", model.state_dict(), state)
    model.load_state_dict(state)
    model.reference_names = names  # type: ignore[assignment]
    return model.eval()


def translate(
    state_dict: Mapping[str, Tensor], method: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by our names, in fp32, and each of our names with the checkpoint's.

    CLIP's projection into the text space is left out: no method uses it.
    Raises VidpipeError for what is no tensor, two names for one tensor, or no classifier.
    """
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in state_dict.items():
        if not isinstance(tensor, Tensor) or not isinstance(theirs, str):
            raise VidpipeError(
                f"checkpoint: {theirs} is a {type(tensor).__name__}, not a tensor; expected the "
                "state dict itself"
            )
        ours = our_name(theirs, method)
        if ours in names:
            raise VidpipeError(f"checkpoint: {names[ours]} and {theirs} are both {ours}")
        names[ours] = theirs
        state[ours] = tensor.float() if tensor.is_floating_point() else tensor
    for name in ("vit.cls_token", "vit.pos_embed"):
        if name in state and state[name].ndim and state[name].numel():
            state[name] = as_tokens(state[name])
    width = _dimensions(state, "head.weight", 2, method)[1]
    for name in ("vit.proj", "vit.visual.proj"):
        if name in state and state[name].ndim == 2 and state[name].shape[0] == width:
            del state[name], names[name]
    return state, names


def frames_of(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> int:
    """Frames a clip: of the temporal embedding, or from `meta` where there is none."""
    if "temporal_embedding.weight" in state:
        return _dimensions(state, "temporal_embedding.weight", 3)[1]
    return _positive(_required(meta, "num_frames"), "meta.num_frames")


def depth_of(state: Mapping[str, Tensor]) -> int:
    indices = {int(m[1]) for n in state if (m := re.match(r"vit\.blocks\.(\d+)\.", n))}
    if not indices:
        raise VidpipeError("checkpoint: no transformer blocks; is it a whole model?")
    return 1 + max(indices)


def grid_of(state: Mapping[str, Tensor]) -> int:
    """Patches along one side of the position grid, which must be square, with a class token."""
    tokens = _dimensions(state, "vit.pos_embed", 3)[1]
    side = round(max(tokens - 1, 0) ** 0.5)
    if side < 1 or side * side != tokens - 1:
        raise VidpipeError(
            f"checkpoint: {tokens} position embeddings are no square grid and a class token"
        )
    return side


def _dimensions(
    state: Mapping[str, Tensor], name: str, count: int, method: str = ""
) -> tuple[int, ...]:
    if name not in state:
        raise VidpipeError(
            f"checkpoint: no tensor for {name}; is it a whole {method or 'video'} model?"
        )
    shape = tuple(state[name].shape)
    if len(shape) != count or 0 in shape:
        raise VidpipeError(f"checkpoint: {name} has shape {shape}; expected {count} dimensions")
    return shape


def _positive(value: Any, what: str) -> int:
    """A whole number; bool is an int to Python, and never meant here."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise VidpipeError(f"{what} is {value!r}; expected a whole number of at least 1")
    return value


def _heads(width: int, meta: Mapping[str, Any]) -> int:
    """CLIP and ImageNet ViTs have heads of 64 channels where nothing else is said."""
    heads = meta.get("heads", meta.get("num_heads"))
    if heads is None:
        if width % 64:
            raise VidpipeError(
                f"meta.heads is missing, and a width of {width} has no heads of 64 channels"
            )
        return width // 64
    if width % _positive(heads, "meta.heads"):
        raise VidpipeError(f"meta.heads: {heads} heads do not divide the width {width}")
    return int(heads)


def _build_vit(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VisionTransformer:
    """CLIP's tower (QuickGELU, ln_pre, eps 1e-5) or timm's ImageNet ViT (GELU, eps 1e-6)."""
    width, _, patch_size, _ = _dimensions(state, "vit.patch_embed.proj.weight", 4)
    side = grid_of(state)
    clip = "vit.norm_pre.weight" in state
    if meta.get("backbone") == ("timm_vit" if clip else "clip_vit"):
        raise VidpipeError(
            f"meta.backbone: {meta['backbone']!r}, but the checkpoint has "
            f"{'' if clip else 'no '}ln_pre, as {'CLIP' if clip else 'ImageNet'} ViTs do"
        )
    hidden = _dimensions(state, "vit.blocks.0.mlp.fc1.weight", 2)[0]
    return VisionTransformer(
        img_size=side * patch_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth_of(state),
        num_heads=_heads(width, meta),
        mlp_ratio=hidden / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in state,
        pre_norm=clip,
        act_layer=QuickGELU if clip else nn.GELU,
        norm_layer=nn.LayerNorm if clip else partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
        weight_init="skip",
    )


def method_config(
    method: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> MethodConfig:
    """The method's options: from the tensors where they tell, else from `meta`."""
    configs = {"aim": _aim_config, "st_adapter": _st_adapter_config, "zeroi2v": _zeroi2v_config}
    try:
        return configs[method](state, meta)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise VidpipeError(
            f"checkpoint: {where} cannot be {wrong['input']!r} ({wrong['msg']})"
        ) from None


def _refuse_contradictions(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], config: MethodConfig
) -> None:
    """Compare every option of `meta` that the tensors also tell; another value is another model."""
    classes, width = _dimensions(state, "head.weight", 2)
    found: dict[str, Any] = {"num_classes": classes, "width": width, "embed_dim": width}
    if "vit.patch_embed.proj.weight" in state:
        patch = state["vit.patch_embed.proj.weight"].shape[-1]
        size, depth = grid_of(state) * patch, depth_of(state)
        found |= {"patch_size": patch, "input_resolution": size, "img_size": size}
        found |= {"layers": depth, "depth": depth}
    if "temporal_embedding.weight" in state:
        found["num_frames"] = state["temporal_embedding.weight"].shape[1]
    if isinstance(config, AIMConfig):
        found["num_tadapter"] = config.num_temporal_adapters
    if isinstance(config, ZeroI2VConfig) and config.adapters and meta.get("num_tadapter") == 2:
        # 2 asks for an adapter before the attention; a merged model has none of any kind.
        found["num_tadapter"] = 1 + any(name.startswith("attn_in") for name in config.adapters)
    if isinstance(config, STAdapterConfig):
        found["adapter_kernel_size"] = list(config.kernel_size)
        found["adapter_width"] = round(width * config.bottleneck_ratio)
        found["adapter_layers"] = len(_adapted(state))
        for theirs, ours in ST_POSITIONS.items():
            found[theirs] = ours in config.positions
    for key, own in found.items():
        given = meta.get(key)
        if isinstance(given, list | tuple):
            # One size for both sides of a square may be written twice.
            given = given[0] if isinstance(own, int) and set(given) == {own} else list(given)
        if given is not None and given != own:
            raise VidpipeError(f"meta.{key} is {given}, but the checkpoint's tensors have {own}")


def _bottleneck_ratio(state: Mapping[str, Tensor]) -> float:
    for name, tensor in state.items():
        if name.startswith("adapters.") and name.endswith("fc1.weight") and tensor.ndim == 2:
            return tensor.shape[0] / tensor.shape[1]
    raise VidpipeError("checkpoint: no adapter weights; expected *dapter*.fc1.weight tensors")


def _adapter_parts(state: Mapping[str, Tensor], part: int) -> list[str]:
    parts = {n.split(".")[part] for n in state if n.startswith("adapters.")}
    return sorted(parts)


def _required(meta: Mapping[str, Any], key: str) -> Any:
    if key not in meta:
        raise VidpipeError(f"meta.{key} is missing: it cannot be read from the tensors")
    return meta[key]


def _aim_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    return AIMConfig(
        bottleneck_ratio=_bottleneck_ratio(state),
        scale=_required(meta, "adapter_scale"),
        num_temporal_adapters=2 if "temporal_in" in _adapter_parts(state, 2) else 1,
        drop_path=meta.get("drop_path_rate", 0.2),
    )


def _adapted(state: Mapping[str, Tensor]) -> dict[int, set[str]]:
    """ST-Adapter's positions in each adapted block, by index."""
    found: dict[int, set[str]] = {}
    for index, position in (part.split("_", 1) for part in _adapter_parts(state, 1)):
        found.setdefault(int(index), set()).add(position)
    return dict(sorted(found.items()))


def _st_adapter_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    kernel = next((t.shape[2:] for n, t in state.items() if n.endswith("conv.weight")), None)
    if kernel is None:
        raise VidpipeError("checkpoint: no adapter convolution found")
    adapted = _adapted(state)
    at: dict[Position, tuple[int, ...]] = {}
    for position in ST_POSITIONS.values():
        if blocks := tuple(index for index, found in adapted.items() if position in found):
            at[position] = blocks
    same = len(set(at.values())) == 1
    return STAdapterConfig(
        bottleneck_ratio=_bottleneck_ratio(state),
        kernel_size=tuple(kernel),
        positions=tuple(at),
        blocks=next(iter(at.values())) if same else at,
    )


def _zeroi2v_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    found = _adapter_parts(state, 2)
    width = state["head.weight"].shape[1]
    return ZeroI2VConfig(
        adapters=tuple(name for name in ZEROI2V_ADAPTERS.values() if name in found),
        bottleneck_ratio=_bottleneck_ratio(state) if found else 0.25,
        # A merged model has no adapter to scale; for all others a guess would cost accuracy silently.
        scale=_required(meta, "adapter_scale") if found else 1.0,
        channel_offsets=_channel_offsets(width, _required(meta, "stdha")),
    )


def _channel_offsets(width: int, stdha: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """The released code's channel groups: D/div channels an offset, in this order, the rest at 0."""
    if not isinstance(stdha, Mapping):
        raise VidpipeError(f"meta.stdha is {stdha!r}; expected options such as shift_div: 12")
    plan: list[tuple[str, int, bool]] = [
        ("shift_div", -1, True),
        ("shift_div", 1, True),
        ("long_shift_div", -2, True),
        ("shift1_div", -1, True),
        ("shift1_div", 1, True),
        ("shift2_div", -2, True),
        ("shift2_div", 2, True),
        ("shift3_div", -3, True),
        ("shift3_div", 3, bool(stdha.get("shift3_right"))),
        ("shift4_div", -4, True),
        ("shift4_div", 4, bool(stdha.get("shift4_right"))),
    ]
    known = {key for key, _, _ in plan} | {"shift3_right", "shift4_right"}
    if unknown := set(stdha) - known:
        raise VidpipeError(f"meta.stdha: unknown options {sorted(unknown)}")
    divisors = {key: stdha.get(key) or 0 for key, _, _ in plan}
    for key, divisor in divisors.items():
        if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 0:
            raise VidpipeError(f"meta.stdha.{key} is {divisor!r}; expected a whole number")
    groups = [(width // divisors[key], dt) for key, dt, on in plan if on and divisors[key]]
    rest = width - sum(channels for channels, _ in groups)
    if rest < 0:
        raise VidpipeError(f"meta.stdha: {dict(stdha)} moves more than the {width} channels")
    return (*groups, (rest, 0)) if rest else tuple(groups)
