"""A network beside frozen blocks: it reads their outputs, and no gradient enters the backbone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor

from vidpipe.methods.base import VideoModel


class FrozenReader(VideoModel):
    """A method whose logits are `decide(read(video))`. What it reads can be kept (`Split`)."""

    per_block: int = 1
    """Tensors that `read` gives at a time."""
    starts_as_image_model = False
    reads_pooled_only = False

    @abstractmethod
    def read(self, video: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Of (B, 3, T, H, W) clips what is read of each frozen block, in order; nothing of it asks for a
        gradient of a weight. `per_block` tensors at a time, each (B, ...)."""

    @abstractmethod
    def decide(self, blocks: Iterator[tuple[Tensor, ...]]) -> Tensor:
        """What `read` gives, or what was kept of it -> (B, C) logits."""

    def forward(self, video: Tensor) -> Tensor:
        return self.decide(self.read(video))
