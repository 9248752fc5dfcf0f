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

from timm.layers import QuickGELU
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.openclip import as_tokens, timm_name
from vidpipe.errors import VidpipeError
from vidpipe.interop.aim_swin import build_aim_swin
from vidpipe.methods.aim import AIMConfig
from vidpipe.methods.base import MethodConfig
from vidpipe.methods.registry import METHODS, VideoModel, build_method
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
    (r"^backbone\.", ""),
    (r"^(cls_head\.fc_cls|fc)\.", "head."),
    (r"^temporal_embedding$", "temporal_embedding.weight"),
    (r"\.D_fc([12])\.", r".fc\1."),
]


def _our_name(name: str, method: str) -> str:
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
    if method not in METHODS or method == "linear_probe":
        raise VidpipeError(f"meta.method: {method!r}; expected aim, st_adapter or zeroi2v")
    if meta.get("backbone", "clip_vit") not in ("clip_vit", "timm_vit"):
        raise VidpipeError(f"meta.backbone: {meta['backbone']!r} cannot be imported yet")
    names = {_our_name(name, method): name for name in state_dict}
    state = {ours: state_dict[theirs] for ours, theirs in names.items()}
    for name in ("vit.cls_token", "vit.pos_embed"):
        if name in state:
            state[name] = as_tokens(state[name])
    for name in ("vit.patch_embed.proj.weight", "vit.pos_embed", "head.weight"):
        if name not in state:
            raise VidpipeError(f"checkpoint: no tensor for {name}; is it a whole {method} model?")

    vit = _build_vit(state, meta)
    num_frames = int(meta["num_frames"])
    if "temporal_embedding.weight" in state:
        num_frames = state["temporal_embedding.weight"].shape[1]
    classes = state["head.weight"].shape[0]
    configs = {"aim": _aim_config, "st_adapter": _st_adapter_config, "zeroi2v": _zeroi2v_config}
    model = build_method(method, vit, classes, num_frames, configs[method](state, meta))
    refuse_mismatch("checkpoint", model.state_dict(), state)
    model.load_state_dict(state)
    model.reference_names = names  # type: ignore[assignment]
    return model.eval()


def _build_vit(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VisionTransformer:
    """CLIP's tower (QuickGELU, ln_pre, eps 1e-5) or timm's ImageNet ViT (GELU, eps 1e-6)."""
    patches = state["vit.patch_embed.proj.weight"]
    width, _, patch_size, _ = patches.shape
    side = round((state["vit.pos_embed"].shape[1] - 1) ** 0.5)
    clip = "vit.norm_pre.weight" in state
    heads = meta.get("heads", meta.get("num_heads"))
    depth = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("vit.blocks."))
    hidden = state["vit.blocks.0.mlp.fc1.weight"].shape[0]
    return VisionTransformer(
        img_size=side * patch_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=width // 64 if heads is None else int(heads),
        mlp_ratio=hidden / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in state,
        pre_norm=clip,
        act_layer=QuickGELU if clip else nn.GELU,
        norm_layer=nn.LayerNorm if clip else partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
        weight_init="skip",
    )


def _bottleneck_ratio(state: Mapping[str, Tensor]) -> float:
    for name, tensor in state.items():
        if name.startswith("adapters.") and name.endswith("fc1.weight"):
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


def _st_adapter_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    adapted = [part.split("_", 1) for part in _adapter_parts(state, 1)]
    kernel = next((t.shape[2:] for n, t in state.items() if n.endswith("conv.weight")), None)
    if kernel is None:
        raise VidpipeError("checkpoint: no adapter convolution found")
    positions = {position for _, position in adapted}
    return STAdapterConfig(
        bottleneck_ratio=_bottleneck_ratio(state),
        kernel_size=tuple(kernel),
        positions=tuple(p for p in ST_POSITIONS.values() if p in positions),
        blocks=tuple(sorted({int(index) for index, _ in adapted})),
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
    groups = [
        (width // int(stdha[key]), dt)
        for key, dt, on in plan
        if on and int(stdha.get(key) or 0) > 0
    ]
    rest = width - sum(channels for channels, _ in groups)
    if rest < 0:
        raise VidpipeError(f"meta.stdha: {dict(stdha)} moves more than the {width} channels")
    return (*groups, (rest, 0)) if rest else tuple(groups)
