"""The registry: one file a method (and one for its Swin form), one import line here."""

from __future__ import annotations

from timm.models import SwinTransformer

from vidpipe.backbones.swin import ImageModel
from vidpipe.errors import VidpipeError
from vidpipe.methods.aim import AIM
from vidpipe.methods.aim_swin import AIMSwin
from vidpipe.methods.base import MethodConfig, VideoModel
from vidpipe.methods.linear_probe import LinearProbe
from vidpipe.methods.st_adapter import STAdapter
from vidpipe.methods.swin import LinearProbeSwin, SwinModel
from vidpipe.methods.zeroi2v import ZeroI2V
from vidpipe.methods.zeroi2v_swin import ZeroI2VSwin

METHODS: dict[str, type[VideoModel]] = {m.name: m for m in (LinearProbe, STAdapter, AIM, ZeroI2V)}
SWIN_METHODS: dict[str, type[SwinModel]] = {
    m.name: m for m in (LinearProbeSwin, AIMSwin, ZeroI2VSwin)
}

__all__ = ["METHODS", "SWIN_METHODS", "MethodConfig", "VideoModel", "build_method"]


def build_method(
    name: str, vit: ImageModel, num_classes: int, num_frames: int, config: MethodConfig
) -> VideoModel:
    """The video model of method `name` (a key of `METHODS`) around `vit`, which it freezes.

    Raises VidpipeError for a Swin that the method has no form for.
    """
    if isinstance(vit, SwinTransformer):
        if name not in SWIN_METHODS:
            forms = ", ".join(SWIN_METHODS)
            raise VidpipeError(f"method {name} has no Swin form; Swin forms: {forms}")
        return SWIN_METHODS[name](vit, num_classes, num_frames, config)
    return METHODS[name](vit, num_classes, num_frames, config)
