"""Which view an image model has, or why it has none."""

from __future__ import annotations

from timm.models import Eva, VisionTransformer
from torch import nn

from vidpipe.backbones.eva import EvaView, eva_refusal
from vidpipe.backbones.view import ImageView, vit_refusal


def view_of(model: nn.Module) -> ImageView:
    """The view of a model that `refusal` finds nothing against (a Swin has none)."""
    return EvaView(model) if isinstance(model, Eva) else ImageView(model)


def refusal(model: nn.Module) -> str | None:
    """Why methods cannot promise the features of `model`, a phrase after its name; None: they can."""
    if isinstance(model, VisionTransformer):
        return vit_refusal(model)
    if isinstance(model, Eva):
        return eva_refusal(model)
    return f"is a {type(model).__name__}, not one of {FAMILIES}"


FAMILIES = "timm's ViTs, Evas and Swins"
