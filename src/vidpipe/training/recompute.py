"""Activation checkpointing: as many first blocks run twice as a memory budget asks for."""

from __future__ import annotations

import torch

from vidpipe.device import autocast_dtype
from vidpipe.image_size import Size
from vidpipe.methods.base import VideoModel
from vidpipe.profile import saved_by_block
from vidpipe.training.config import TrainConfig


def choose_recomputed(
    model: VideoModel, img_size: Size, clips: int, config: TrainConfig, device: torch.device
) -> int:
    """How many of the first blocks to recompute so that `clips` clips at once fit `activation_gb`.

    Counted on the meta device at one clip, in fp32; 16-bit activations are taken as half of it. A
    recomputed block keeps its input, and one of them at a time has all that it saves.
    """
    depth = len(model.blocks)
    if config.activation_gb is None:
        return 0
    if config.activation_gb == 0:
        return depth
    drop = model.patch_drop
    if config.patch_drop_until < 1:  # the last steps have every patch, and must fit too
        model.patch_drop = None
    saved = saved_by_block(model, img_size)
    model.patch_drop = drop
    each = clips * (1.0 if autocast_dtype(config.precision, device) is None else 0.5)
    budget = config.activation_gb * 2**30
    for count in range(depth):
        inputs, peak = sum(saved.inputs[:count]), max(saved.blocks[:count], default=0)
        if each * (saved.rest + sum(saved.blocks[count:]) + inputs + peak) <= budget:
            return count
    return depth
