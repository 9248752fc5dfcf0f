"""Linear probe: a linear classifier on the mean of the frozen frame features (order-blind)."""

from __future__ import annotations

from torch import nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import LinearProbeConfig


class LinearProbe(VideoModel):
    name = "linear_probe"
    Config = LinearProbeConfig
    order_blind = True
    not_mergeable = "it adds nothing to the backbone"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: LinearProbeConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.declare()
