"""The registry: one line a method (and one for its Swin form), and one import of its file."""

from __future__ import annotations

from torch import nn

from vidpipe.backbones.swin import SWINS
from vidpipe.errors import VidpipeError
from vidpipe.methods.aim import AIM
from vidpipe.methods.aim_swin import AIMSwin
from vidpipe.methods.attentional_pooling import AttentionalPooling
from vidpipe.methods.attentive_probe import AttentiveProbe
from vidpipe.methods.base import MethodConfig, VideoModel
from vidpipe.methods.evl import EVL
from vidpipe.methods.finetune import BitFit, FullFineTune, Partial, TemporalFineTune
from vidpipe.methods.linear_probe import LinearProbe
from vidpipe.methods.lora import LoRA
from vidpipe.methods.prompt_tuning import PromptTuning
from vidpipe.methods.side4video import Side4Video
from vidpipe.methods.st_adapter import STAdapter
from vidpipe.methods.swin import LinearProbeSwin, SwinModel
from vidpipe.methods.temporal_heads import TemporalHeads
from vidpipe.methods.zero_shot import ZeroShot
from vidpipe.methods.zeroi2v import ZeroI2V
from vidpipe.methods.zeroi2v_swin import ZeroI2VSwin

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
        AttentiveProbe,
        Side4Video,
        ZeroShot,
    )
}
SWIN_METHODS: dict[str, type[SwinModel]] = {
    method.name: method for method in (LinearProbeSwin, AIMSwin, ZeroI2VSwin)
}

__all__ = ["METHODS", "SWIN_METHODS", "MethodConfig", "VideoModel", "build_method"]


def build_method(
    name: str, vit: nn.Module, num_classes: int, num_frames: int, config: MethodConfig
) -> VideoModel:
    """The video model of method `name` (a key of `METHODS`) around `vit`, which it freezes.

    Raises VidpipeError for a Swin that the method has no form for.
    """
    if isinstance(vit, SWINS):
        if name not in SWIN_METHODS:
            forms = ", ".join(SWIN_METHODS)
            raise VidpipeError(f"method {name} has no Swin form; Swin forms: {forms}")
        return SWIN_METHODS[name](vit, num_classes, num_frames, config)
    return METHODS[name](vit, num_classes, num_frames, config)
