"""An open_clip image tower becomes the internal timm ViT with equal token features.

The projection into the text space is dropped: methods start from the tower's own features.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.config import RANDOM, BackboneConfig
from vidpipe.backbones.fit import fit_state
from vidpipe.errors import VidpipeError
from vidpipe.weights import read_weights

POOLINGS: dict[str, Literal["token", "avg"]] = {"tok": "token", "avg": "avg"}
"""open_clip's poolings of a tower, by timm's names."""

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
    tower: nn.Module, name: str, img_size: int
) -> tuple[VisionTransformer, dict[str, Tensor]]:
    """`open_clip.transformer.VisionTransformer` -> (untrained timm ViT, its state by timm names).

    The state's position grid has the tower's own size. Raises VidpipeError for towers whose
    features are neither a class token nor a mean of patches, or whose blocks are not CLIP's.
    """
    import open_clip.transformer as zoo

    def refuse(what: str) -> VidpipeError:
        return VidpipeError(
            f"backbone.name: open_clip {name} has {what}, which is not supported; choose a plain "
            "CLIP ViT such as ViT-B-16"
        )

    if not isinstance(tower, zoo.VisionTransformer):
        raise refuse(f"a {type(tower).__name__} image tower")
    if tower.attn_pool is not None:
        raise refuse("attention pooling")
    if tower.pool_type not in POOLINGS:
        raise refuse(f"{tower.pool_type!r} pooling")
    blocks = list(tower.transformer.resblocks)
    block = cast(Any, blocks[0])
    if type(block) is not zoo.ResidualAttentionBlock:
        raise refuse(f"{type(block).__name__} blocks")
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
    if isinstance(tower.ln_pre, nn.Identity):
        vit.norm_pre = nn.Identity()
    return vit, _with_final_norm_of(vit, state)


def _with_final_norm_of(vit: VisionTransformer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with CLIP's one final norm where `vit` has it."""
    if isinstance(vit.fc_norm, nn.Identity):
        return state
    return {re.sub(r"^norm\.", "fc_norm.", name): tensor for name, tensor in state.items()}


def _activation(module: nn.Module) -> Callable[[], nn.Module]:
    from timm.layers import GELUTanh, QuickGELU

    if type(module).__name__ == "QuickGELU":
        return QuickGELU
    if isinstance(module, nn.GELU) and module.approximate == "tanh":  # CLIPA
        return GELUTanh
    return partial(copy.deepcopy, module)


def create_tower(config: BackboneConfig, tag: str | None) -> Any:
    """open_clip's model of `config.name`, with the weights of `tag` or random ones."""
    _refuse_unknown(config.name)
    import open_clip

    if text_needs_transformers(open_clip.get_model_config(config.name)):
        raise VidpipeError(
            f"backbone.name: open_clip {config.name} has a text tower of Hugging Face's transformers, "
            "without which open_clip does not build it; choose a plain CLIP ViT such as ViT-B-16"
        )
    try:
        return open_clip.create_model(
            config.name, pretrained=tag, device=torch.get_default_device()
        )
    except Exception as error:  # hub clients and open_clip raise many kinds
        raise VidpipeError(
            f"backbone.weights: open_clip {config.name} {tag} could not be loaded "
            f"({type(error).__name__}); name a local weights file instead"
        ) from error


def text_needs_transformers(card: Mapping[str, Any]) -> bool:
    """Whether open_clip builds a model's text tower by a package that vidpipe does not bring, from files
    of a hub; `card` is the model's configuration."""
    return "hf_model_name" in card.get("text_cfg", {})


def image_size(config: BackboneConfig) -> int:
    """Pixels a side that open_clip made the tower for. Raises VidpipeError for an unknown name."""
    _refuse_unknown(config.name)
    import open_clip

    size = open_clip.get_model_config(config.name)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def _refuse_unknown(name: str) -> None:
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
    config: BackboneConfig, img_size: int
) -> tuple[VisionTransformer, Mapping[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    """(ViT with weights, its state as stored, mean, std), from a local file, a pretrained tag, or
    random."""
    from open_clip import list_pretrained_tags_by_model
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    tag = config.hub_tag
    if tag == "":
        tags = list_pretrained_tags_by_model(config.name)
        raise VidpipeError(f"backbone.weights: open_clip needs a tag, hub:<one of {tags}>")
    tower = create_tower(config, tag).visual
    mean = tuple(getattr(tower, "image_mean", None) or OPENAI_DATASET_MEAN)
    std = tuple(getattr(tower, "image_std", None) or OPENAI_DATASET_STD)
    vit, state = tower_to_timm(tower, config.name, img_size)
    if tag is None and config.weights != RANDOM:
        state = _with_final_norm_of(vit, _local_tower(Path(config.weights)))
    fit_state(vit, state, config.weights)
    return vit, state, mean, std


def _local_tower(path: Path) -> dict[str, Tensor]:
    """The image tower of a saved open_clip model (text tower and projection left out)."""
    raw, _ = read_weights(path)
    raw = {name.removeprefix("module."): tensor for name, tensor in raw.items()}
    if any(name.startswith("visual.") for name in raw):
        raw = {n.removeprefix("visual."): t for n, t in raw.items() if n.startswith("visual.")}
    state = {timm_name(name): tensor for name, tensor in raw.items() if name != "proj"}
    for key in state.keys() & {"cls_token", "pos_embed"}:
        state[key] = as_tokens(state[key])
    return state
