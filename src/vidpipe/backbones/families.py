"""Which view an image model has, or why it has none."""

from __future__ import annotations

from timm.models import Beit, Eva, VisionTransformer
from torch import nn

from vidpipe.backbones.beit import BeitView, beit_refusal
from vidpipe.backbones.eva import EvaView, eva_refusal
from vidpipe.backbones.view import ImageView, vit_refusal

FAMILIES = "timm's ViTs, Evas, BEiTs and Swins"


def view_of(model: nn.Module) -> ImageView:
    """The view of a model that `refusal` finds nothing against (a Swin has none)."""
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
    return f"is a {type(model).__name__}, not one of {FAMILIES}"
