"""The registry: one file a method, one import line here."""

from __future__ import annotations

from timm.models import VisionTransformer

from vidpipe.methods.aim import AIM
from vidpipe.methods.base import MethodConfig, VideoModel
from vidpipe.methods.linear_probe import LinearProbe
from vidpipe.methods.st_adapter import STAdapter
from vidpipe.methods.zeroi2v import ZeroI2V

METHODS: dict[str, type[VideoModel]] = {m.name: m for m in (LinearProbe, STAdapter, AIM, ZeroI2V)}

__all__ = ["METHODS", "MethodConfig", "VideoModel", "build_method"]


def build_method(
    name: str, vit: VisionTransformer, num_classes: int, num_frames: int, config: MethodConfig
) -> VideoModel:
    """The video model of method `name` (a key of `METHODS`) around `vit`, which it freezes."""
    return METHODS[name](vit, num_classes, num_frames, config)
