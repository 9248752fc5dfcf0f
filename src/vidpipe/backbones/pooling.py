"""`backbone.pool`: what the feature of a frame is made of, where not of what the zoo makes it.

timm pools DINOv3 by the mean of patches where its authors read the class token, and a model with
attention pooling or a mean of patches may have a class token as well. The final norm stays the model's
own: of tokens, or (`fc_norm`) of the pooled feature.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models.deit import VisionTransformerDistilled
from torch import nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.families import view_of
from vidpipe.backbones.swin import SWINS
from vidpipe.errors import VidpipeError


def set_pool(model: nn.Module, config: BackboneConfig) -> None:
    """Have `model` pool as `config.pool` says; its attention pooling falls away where it is not `zoo`.

    Raises VidpipeError where the model has no class token to read.
    """
    if config.pool == "zoo":
        return
    own = cast(Any, model)
    if isinstance(model, SWINS):
        if config.pool == "token":
            raise _refused(config, "a Swin has no class token; leave it out")
        return  # it has a mean of patches
    if isinstance(model, VisionTransformerDistilled):
        raise _refused(
            config, "its feature is made of two tokens, class and distillation; leave it out"
        )
    if config.pool == "token" and not view_of(model).has_class_token:
        raise _refused(config, "the backbone has no class token; set avg, or leave it out")
    own.global_pool = config.pool
    if getattr(own, "attn_pool", None) is not None:
        own.attn_pool = None


def _refused(config: BackboneConfig, why: str) -> VidpipeError:
    return VidpipeError(f"backbone.pool: {config.pool} for {config.name}, but {why}")
