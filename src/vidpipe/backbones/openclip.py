"""An open_clip image tower becomes a timm model with equal features.

CLIP's own ViT is rebuilt as timm's; of a tower on a timm model (SigLIP, ...) that model, the trunk, is
taken. The projection into the text space is dropped: methods start from the feature before it.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.config import RANDOM, BackboneConfig
from vidpipe.backbones.families import refusal
from vidpipe.backbones.fit import fit_state, refuse_other_model
from vidpipe.backbones.listing import POOLINGS, nearest_tower
from vidpipe.backbones.patches import refuse_dropped_pixels, set_size
from vidpipe.backbones.pooling import set_pool
from vidpipe.backbones.positions import read_grid
from vidpipe.backbones.swin import SWINS
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, size_of, words
from vidpipe.weights import read_weights

# CLIP's names (open_clip and OpenAI) -> timm's, applied in order.
_CLIP_TO_TIMM = [
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".ls\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
]


def timm_name(name: str) -> str:
    """A CLIP tower's parameter name in timm's ViT; other names come back unchanged."""
    for pattern, replacement in _CLIP_TO_TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def as_tokens(tensor: Tensor) -> Tensor:
    """Class and position embeddings, (D,) or (N, D) in CLIP, as timm's (1, N, D)."""
    return tensor.reshape(1, -1, tensor.shape[-1])


def tower_to_timm(
    tower: nn.Module, name: str, img_size: Size
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The image tower of an open_clip model -> (untrained timm model, the tower's state by its names).

    The state's position grid has the tower's own size. Raises VidpipeError, with the nearest model that
    works, for towers whose feature cannot be promised, and where `img_size` does not fit.
    """
    if (reason := tower_refusal(tower)) is not None:
        raise VidpipeError(f"backbone.name: open_clip {name} {reason}; {nearest_tower(name)}")
    own = cast(Any, tower)
    made_for = size_of(*_pair(own.image_size))
    text_width = projection_of(own)[0].shape[0]
    if hasattr(own, "trunk"):
        refuse_dropped_pixels(own.trunk, f"open_clip {name}", img_size, made_for)
        vit, state = _trunk_of(own, name, img_size)
    else:
        vit, state = _clip_to_timm(own, img_size)
        refuse_dropped_pixels(vit, f"open_clip {name}", img_size, made_for)
    vit.text_width = text_width  # type: ignore[assignment]
    return vit, state


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def tower_refusal(tower: nn.Module) -> str | None:
    """Why methods cannot promise the features of `tower`, a phrase after its name; None: they can."""
    import open_clip.transformer as zoo
    from open_clip.timm_model import TimmModel

    if isinstance(tower, TimmModel):
        if hasattr(tower.head, "pool"):
            return f"pools by {type(tower.head.pool).__name__} of its own"
        return None if isinstance(tower.trunk, SWINS) else refusal(tower.trunk)
    if not isinstance(tower, zoo.VisionTransformer):
        return f"has a {type(tower).__name__} image tower, not a ViT"
    if tower.attn_pool is not None:
        return f"has attention pooling to {tower.output_dim} channels"
    if tower.pool_type not in POOLINGS:
        return f"has {tower.pool_type!r} pooling"
    kinds = {type(block) for block in tower.transformer.resblocks} - {zoo.ResidualAttentionBlock}
    return f"has {kinds.pop().__name__} blocks" if kinds else None


def projection_of(tower: Any) -> tuple[Tensor, Tensor]:
    """(weight (E, D), bias (E,)) of the tower's way from its feature into the text space: the identity
    and zeros where it has none."""
    layer: Any
    if not hasattr(tower, "trunk"):
        weight, bias = tower.proj.T, None
    elif hasattr(tower.head, "proj"):
        weight, bias = tower.head.proj.weight, tower.head.proj.bias
    elif isinstance(layer := tower.trunk.get_classifier(), nn.Linear):
        weight, bias = layer.weight, layer.bias
    else:
        weight, bias = torch.eye(tower.trunk.num_features), None
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _trunk_of(tower: Any, name: str, img_size: Size) -> tuple[nn.Module, dict[str, Tensor]]:
    """The timm model that the tower stands on, with the tower's pooling and without a projection, which
    is either the trunk's classifier or a layer of the tower's own."""
    trunk = tower.trunk
    state = _without_head(trunk.state_dict())
    trunk.reset_classifier(0)
    try:
        set_size(trunk, img_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise VidpipeError(
            f"backbone: open_clip {name} at transform.size {words(img_size)}: {reason}"
        ) from error
    return trunk, state


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trunk's tensors without its classifier, which projects into the text space."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _clip_to_timm(tower: Any, img_size: Size) -> tuple[VisionTransformer, dict[str, Tensor]]:
    import open_clip.transformer as zoo

    blocks = list(tower.transformer.resblocks)
    block = blocks[0]
    state = {timm_name(k): v for k, v in tower.state_dict().items() if k != "proj"}
    for key in ("cls_token", "pos_embed"):
        state[key] = as_tokens(state[key])
    layer_scale = isinstance(block.ls_1, zoo.LayerScale)
    norm_eps = block.ln_1.eps
    vit = VisionTransformer(
        img_size=img_size,
        patch_size=tower.patch_size[0],
        embed_dim=tower.conv1.out_channels,
        depth=len(blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / tower.conv1.out_channels,
        init_values=1.0 if layer_scale else None,
        pre_norm=True,  # CLIP's patch convolution has no bias, with or without `ln_pre`
        act_layer=_activation(block.mlp.gelu),
        global_pool=POOLINGS[tower.pool_type],
        # Of a class token alone the two orders are one.
        fc_norm=tower.pool_type == "avg" and tower.final_ln_after_pool,
        norm_layer=lambda width, **kw: nn.LayerNorm(width, eps=norm_eps, **kw),
        num_classes=0,
        weight_init="skip",
    )
    cast(Any, vit).pretrained_cfg = {"input_size": (3, *_pair(tower.image_size))}
    if isinstance(tower.ln_pre, nn.Identity):
        vit.norm_pre = nn.Identity()
    return vit, _with_final_norm_of(vit, state)


def _with_final_norm_of(vit: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with CLIP's one final norm where `vit` has it."""
    if isinstance(getattr(vit, "fc_norm", nn.Identity()), nn.Identity):
        return state
    return {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in state.items()}


def _activation(module: nn.Module) -> Callable[[], nn.Module]:
    from timm.layers import GELUTanh, QuickGELU

    if type(module).__name__ == "QuickGELU":
        return QuickGELU
    if isinstance(module, nn.GELU) and module.approximate == "tanh":  # CLIPA
        return GELUTanh
    return partial(copy.deepcopy, module)


def create_tower(config: BackboneConfig, tag: str | None) -> nn.Module:
    """The image tower of `config.name`, with the weights of `tag`, or random ones, for which the text
    half is not built. Raises VidpipeError for an unknown name or tag, or weights that cannot be had."""
    refuse_unknown(config.name)
    import open_clip
    from open_clip.model import _build_vision_tower

    card = cast(dict[str, Any], open_clip.get_model_config(config.name))
    if tag is None:
        width, quick_gelu = card["embed_dim"], card.get("quick_gelu", False)
        return cast(nn.Module, _build_vision_tower(width, card["vision_cfg"], quick_gelu))
    return cast(nn.Module, create_whole(config.name, tag).visual)


def create_whole(name: str, tag: str | None) -> Any:
    """open_clip's model `name`, both halves, with the weights of `tag`, or random ones.

    Raises VidpipeError for an unknown tag or one of another activation, a text half that needs another
    package, and where open_clip cannot load it.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    card = cast(dict[str, Any], open_clip.get_model_config(name))
    if "hf_model_name" in card.get("text_cfg", {}):
        raise VidpipeError(
            f"backbone.name: open_clip {name} has a text tower of Hugging Face's transformers, without "
            "which open_clip does not load it from a hub; name a local file of its weights"
        )
    if tag is not None:
        if not (own := get_pretrained_cfg(name, tag)):
            tags = list_pretrained_tags_by_model(name)
            raise VidpipeError(f"backbone.weights: open_clip needs a tag, hub:<one of {tags}>")
        quick = bool(own.get("quick_gelu"))
        if quick != bool(card.get("quick_gelu")):
            trained, has = ("quickgelu", "gelu") if quick else ("gelu", "quickgelu")
            raise VidpipeError(
                f"backbone.weights: hub:{tag} is for activation {trained}, but open_clip {name} has "
                f"{has}; {nearest_tower(name + '-quickgelu' if quick else name[:-10])}"
            )
    try:
        return open_clip.create_model(name, pretrained=tag, device=torch.get_default_device())
    except Exception as error:  # hub clients and open_clip raise many kinds
        raise VidpipeError(
            f"backbone.weights: open_clip {name} {tag} could not be loaded "
            f"({type(error).__name__}); name a local weights file instead"
        ) from error


def preprocessing(config: BackboneConfig, header: Mapping[str, str]) -> dict[str, Any]:
    """What open_clip does to a picture for the weights that `config` names, whose file has `header`:
    mean, std, size, interpolation, crop_pct. Raises VidpipeError for an unknown name."""
    refuse_unknown(config.name)
    import open_clip
    from open_clip.transform import PreprocessCfg

    tag = config.hub_tag or None
    mean, std = normalisation(config.name, tag, header)
    how = open_clip.get_pretrained_cfg(config.name, tag) if tag else {}
    return {
        **{"mean": mean, "std": std, "crop_pct": 1.0},
        "interpolation": how.get("interpolation") or PreprocessCfg().interpolation,
        "size": open_clip.get_model_config(config.name)["vision_cfg"].get("image_size", 224),
    }


def refuse_unknown(name: str) -> None:
    """Raises VidpipeError, with the nearest name, for what is no model of open_clip."""
    try:
        import open_clip
    except ModuleNotFoundError:
        raise VidpipeError(
            f"backbone.name: open_clip's {name} needs the package open_clip_torch, which is not "
            "installed"
        ) from None
    if name not in open_clip.list_models():
        near = get_close_matches(name, open_clip.list_models(), n=1, cutoff=0.5)
        hint = f"; nearest is {near[0]}" if near else ""
        raise VidpipeError(f"backbone.name: open_clip has no model {name!r}{hint}")


def load_open_clip(
    config: BackboneConfig, img_size: Size
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """(timm model with weights, its state as stored), from a local file, a pretrained tag, or random."""
    tag = config.hub_tag
    with torch.device("meta"):  # what is refused may be large
        tower_to_timm(create_tower(config, None), config.name, img_size)
    tower = create_tower(config, tag)
    vit, state = tower_to_timm(tower, config.name, img_size)
    grid = None
    if tag is None and config.weights != RANDOM:
        local, header = _local_tower(Path(config.weights))
        refuse_other_model(config, vit, header)
        state = _with_final_norm_of(vit, local)
        grid = read_grid(header, config.weights)
    set_pool(vit, config)
    fit_state(vit, state, config.weights, grid)
    return vit, state


def normalisation(
    name: str, tag: str | None, header: Mapping[str, str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the input that the weights expect: those of `tag`; of a file, those of its header,
    or what all tags of the name agree in. Where they do not, OpenAI's, which a warning says."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    if {"mean", "std"} <= header.keys():
        try:
            mean, std = (tuple(map(float, header[key].split(","))) for key in ("mean", "std"))
        except ValueError:
            raise VidpipeError(
                f"open_clip {name}: mean and std in the file's header are no numbers"
            ) from None
        return mean, std
    found: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for own in list_pretrained_tags_by_model(name) if tag is None else [tag]:
        card = get_pretrained_cfg(name, own)
        key = tuple(tuple(card.get(k) or ()) for k in ("mean", "std"))
        found.setdefault(key, []).append(own)
    openai = tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD)
    if len(found) > 1:
        rare = min(found, key=lambda key: len(found[key]))
        warnings.warn(
            f"open_clip {name}: its weights {', '.join(found[rare])} expect another mean and std than "
            "the others, and the file does not say what it is; OpenAI's are assumed",
            stacklevel=3,
        )
        return openai
    (mean, std) = next(iter(found), ((), ()))
    return mean or openai[0], std or openai[1]


def _local_tower(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(image tower, header) of a saved open_clip model, whole or the tower alone, by timm's names."""
    raw, header = read_weights(path)
    raw = {name.removeprefix("module."): tensor for name, tensor in raw.items()}
    for part in ("visual.", "trunk."):
        if any(name.startswith(part) for name in raw):
            raw = {n.removeprefix(part): t for n, t in raw.items() if n.startswith(part)}
            if part == "trunk.":
                raw = _without_head(raw)
    state = {timm_name(name): tensor for name, tensor in raw.items() if name != "proj"}
    for key in state.keys() & {"cls_token", "pos_embed"}:
        state[key] = as_tokens(state[key])
    return state, header
