"""The embedding of a frame's place in the clip, which AIM, ZeroI2V and others train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidpipe.errors import VidpipeError


class TemporalEmbedding(nn.Module):
    """(1, T, D), zero at start, added to every token of frame t before `ln_pre` (AIM, ZeroI2V)."""

    def __init__(self, num_frames: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, num_frames, width))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        if num_frames != self.weight.shape[1]:
            raise VidpipeError(
                f"clip has {num_frames} frames, but the temporal embedding was trained for "
                f"{self.weight.shape[1]}: set sampling.num_frames to that"
            )
        x_BTND = x.unflatten(0, (-1, num_frames)) + self.weight[:, :, None]
        return x_BTND.flatten(0, 1)
