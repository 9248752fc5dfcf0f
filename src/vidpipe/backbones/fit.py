"""Fitting weights to a model: position grids resized, anything missing or left over refused."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models import SwinTransformer, swin_transformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from vidpipe.backbones.swin import ImageModel
from vidpipe.errors import VidpipeError
from vidpipe.weights import refuse_mismatch, refuse_not_finite


def fit_state(vit: ImageModel, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `vit`, resizing the position grid; refuse anything missing or left over."""
    if odd := [name for name, tensor in state.items() if tensor.is_complex()]:
        raise VidpipeError(f"{source}: {odd[0]} is complex; expected real weights")
    given = {k: v.float() for k, v in state.items()}
    if isinstance(vit, SwinTransformer):
        try:
            fitted = swin_transformer.checkpoint_filter_fn(given, vit)
        except (AttributeError, RuntimeError) as error:  # a bias table of a block that is not there
            reason = str(error).splitlines()[0]
            raise VidpipeError(f"{source}: weights do not fit the model; {reason}") from None
    else:
        fitted = checkpoint_filter_fn(given, vit, interpolation="bicubic", antialias=False)
    # A classifier or projection on top of the features is not part of the frozen backbone.
    fitted = {k: v for k, v in fitted.items() if not k.startswith(("head.", "head_dist."))}
    if "mask_token" in fitted and not hasattr(vit, "mask_token"):
        fitted.pop("mask_token")  # DINOv2's training token; never used at inference
    refuse_mismatch(source, vit.state_dict(), fitted)
    refuse_not_finite(source, fitted)
    vit.load_state_dict(fitted)
