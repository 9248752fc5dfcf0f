"""Fitting weights to a model: position grids resized, anything missing or left over refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import (
    Beit,
    Eva,
    SwinTransformer,
    SwinTransformerV2,
    beit,
    eva,
    swin_transformer,
    swin_transformer_v2,
    vision_transformer,
)
from torch import Tensor, nn

from vidpipe.backbones.activation import activation_of
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.naflex import EMBEDS, plain_state
from vidpipe.backbones.positions import resized_positions
from vidpipe.errors import VidpipeError
from vidpipe.weights import refuse_mismatch, refuse_not_finite

KINDS = {
    "an adapter of vidpipe": r"^(adapters|updates|differences)\.",
    "a whole video model (see `vidpipe import-checkpoint`)": r"^(backbone|cls_head)\.",
    "a ResNet": r"^layer1\.\d",
    "a Swin V2": r"^layers\.\d+\.blocks\.\d+\.attn\.cpb_mlp",
    "a Swin": r"^layers\.\d+\.blocks\.",
    "a ConvNeXt, FastViT or other model in stages": r"^stages\.\d",
    "a model of Hugging Face's transformers": r"(^|\.)encoder\.layers?\.\d",
    "an open_clip model": r"^visual\.",
    "a NaFlexViT": rf"^{re.escape(EMBEDS)}",
    "a text tower": r"^(text|token_embedding)\.",
    "a BEiT": r"^(rel_pos_bias|blocks\.0\.attn\.relative_position)",
    "an Eva": r"^(rope|blocks\.0\.(attn\.(q_proj|q_bias|rope)|gamma_1))",
    "a plain ViT": r"^blocks\.0\.",
}
"""Families of models by what a name of their tensors is like; the first that is found holds."""


def kind_of(names: Iterable[str]) -> str | None:
    """What the model is whose tensors have these names, in words; None: not known."""
    text = "\n".join(names)
    return next((kind for kind, own in KINDS.items() if re.search(own, text, re.MULTILINE)), None)


def refuse_other_model(config: BackboneConfig, vit: nn.Module, header: Mapping[str, str]) -> None:
    """Compare what the weights file says of itself (where it does) with what was asked for."""
    name = config.name.partition(".")[0]
    for what, own in (("architecture", name), ("activation", activation_of(vit))):
        if header.get(what, own) != own:
            raise VidpipeError(
                f"backbone.weights: {config.weights} is for {what} {header[what]}, but "
                f"backbone.name {name} has {own}"
            )


def fit_state(
    vit: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    grid: tuple[int, int] | None = None,
) -> None:
    """Load `state` into `vit`, resizing the position grid; refuse anything missing or left over, and
    weights of another family by its name. `grid`: that of the state, as in `resized_positions`."""
    if odd := [name for name, tensor in state.items() if tensor.is_complex()]:
        raise VidpipeError(f"{source}: {odd[0]} is complex; expected real weights")
    own = vit.state_dict()
    try:
        _refuse_other_patches(source, own, state)
        fitted = _resized(vit, {k: v.float() for k, v in state.items()}, grid)
        refuse_mismatch(source, own, fitted)
    except (VidpipeError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        holds, wants = kind_of(state), kind_of([*own, EMBEDS] if hasattr(vit, "naflex") else own)
        if None not in (holds, wants) and holds != wants:
            raise VidpipeError(
                f"{source}: weights do not fit the model; they are those of {holds}, and the backbone "
                f"is {wants}"
            ) from None
        if isinstance(error, VidpipeError) and str(error).startswith(source):
            raise
        reason = str(error).splitlines()[0]  # such as a bias table of a block that is not there
        raise VidpipeError(f"{source}: weights do not fit the model; {reason}") from None
    refuse_not_finite(source, fitted)
    vit.load_state_dict(fitted)


def _refuse_other_patches(
    source: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    """timm would resample them, and a model of other patches is another model."""
    name = "patch_embed.proj.weight"
    if name in state and name in own and state[name].shape[2:] != own[name].shape[2:]:
        theirs, ours = (" x ".join(map(str, tensors[name].shape[2:])) for tensors in (state, own))
        raise VidpipeError(
            f"{source}: weights do not fit the model; they are for patches of {theirs} pixels, and the "
            f"backbone's have {ours}"
        )


def _resized(
    vit: nn.Module, state: dict[str, Tensor], grid: tuple[int, int] | None
) -> dict[str, Tensor]:
    """`state` at the model's size, without what is no part of the features."""
    plain, own_grid = plain_state(vit, state)
    state, grid = dict(plain), own_grid or grid
    positions = resized_positions(vit, state, grid)
    state = {name: tensor for name, tensor in state.items() if name not in positions}
    if isinstance(vit, SwinTransformer):
        fitted = swin_transformer.checkpoint_filter_fn(state, vit)
    elif isinstance(vit, SwinTransformerV2):
        fitted = swin_transformer_v2.checkpoint_filter_fn(state, vit)
    else:
        families = ((Beit, beit), (Eva, eva), (nn.Module, vision_transformer))
        family: Any = next(file for kind, file in families if isinstance(vit, kind))
        fitted = family.checkpoint_filter_fn(state, vit, interpolation="bicubic", antialias=False)
    # A classifier or projection on top of the features is not part of the frozen backbone.
    fitted = {k: v for k, v in fitted.items() if not k.startswith(("head.", "head_dist."))}
    fitted |= positions
    if "mask_token" in fitted and not hasattr(vit, "mask_token"):
        fitted.pop("mask_token")  # DINOv2's training token; never used at inference
    if getattr(vit, "attn_pool", None) is None:  # another pooling was asked for
        fitted = {k: v for k, v in fitted.items() if not k.startswith("attn_pool.")}
    return fitted
