"""The embedding of a frame's place in the clip, which AIM, ZeroI2V and others train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel


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


class EmbedsTime(VideoModel):
    """A method whose tokens learn their frame: at the input, ahead of `ln_pre`, as in the papers' code,
    or just before the first block that differs from the image model, so that all below stays frozen."""

    temporal_embedding: TemporalEmbedding
    embeds_time_at: int | None = -1
    """The block before which frames are told apart; -1: at the input; None: nowhere."""

    def block_of(self, name: str) -> int | None:
        own = name.startswith("temporal_embedding.")
        return self.embeds_time_at if own else super().block_of(name)

    def embed(self, frames: Tensor, num_frames: int) -> Tensor:
        return self.view.norm_pre(self.with_time(-1, self.view.embed(frames), num_frames))

    def with_time(self, index: int, x: Tensor, num_frames: int) -> Tensor:
        """What block `index` reads (-1: the input), the embedding added where it belongs."""
        return self.temporal_embedding(x, num_frames) if index == self.embeds_time_at else x
