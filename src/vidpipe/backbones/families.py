"""Which view an image model has, or why it has none."""

from __future__ import annotations

from timm.models import Beit, Eva, NaFlexVit, VisionTransformer
from torch import nn

from vidpipe.backbones.beit import BeitView, beit_refusal
from vidpipe.backbones.eva import EvaView, eva_refusal
from vidpipe.backbones.naflex import naflex_refusal
from vidpipe.backbones.view import ImageView, vit_refusal

FAMILIES = "timm's ViTs, NaFlexViTs, Evas, BEiTs and Swins"


def view_of(model: nn.Module) -> ImageView:
    """The view of a model that `refusal` finds nothing against. A Swin has none; of a NaFlexViT,
    `naflex.plain_vit` has one."""
    if isinstance(model, Eva):
        return EvaView(model)
    if isinstance(model, Beit):
        return BeitView(model)
    return ImageView(model)


def refusal(model: nn.Module) -> str | None:
    """Why methods cannot promise the features of `model`, a phrase after its name; None: they can."""
    if isinstance(model, VisionTransformer):
        return vit_refusal(model)
    if isinstance(model, Eva):
        return eva_refusal(model)
    if isinstance(model, Beit):
        return beit_refusal(model)
    if isinstance(model, NaFlexVit):
        return naflex_refusal(model)
    return f"is a {type(model).__name__}, not one of {FAMILIES}"
