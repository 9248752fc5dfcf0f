"""The registry: one line a method, and one import of its file."""

from __future__ import annotations

from timm.models import VisionTransformer

from vidpipe.methods.aim import AIM
from vidpipe.methods.attentional_pooling import AttentionalPooling
from vidpipe.methods.base import MethodConfig, VideoModel
from vidpipe.methods.evl import EVL
from vidpipe.methods.finetune import BitFit, FullFineTune, Partial, TemporalFineTune
from vidpipe.methods.linear_probe import LinearProbe
from vidpipe.methods.lora import LoRA
from vidpipe.methods.prompt_tuning import PromptTuning
from vidpipe.methods.st_adapter import STAdapter
from vidpipe.methods.temporal_heads import TemporalHeads
from vidpipe.methods.zeroi2v import ZeroI2V

METHODS: dict[str, type[VideoModel]] = {
    method.name: method
    for method in (
        LinearProbe,
        STAdapter,
        AIM,
        ZeroI2V,
        FullFineTune,
        Partial,
        BitFit,
        TemporalFineTune,
        TemporalHeads,
        LoRA,
        PromptTuning,
        AttentionalPooling,
        EVL,
    )
}

__all__ = ["METHODS", "MethodConfig", "VideoModel", "build_method"]


def build_method(
    name: str, vit: VisionTransformer, num_classes: int, num_frames: int, config: MethodConfig
) -> VideoModel:
    """The video model of method `name` (a key of `METHODS`) around `vit`, which it freezes."""
    return METHODS[name](vit, num_classes, num_frames, config)
