"""Only the temporal heads are trained (ZeroI2V, Table 2: 4.6 M on ViT-B/16 with two of twelve heads).

The trained part is the difference to the frozen weights: the shifted channels' rows of Q, K and V and
columns of the output projection (4 D c weights a block, no biases). It starts at zero and is added to
the weights when merged.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.block import QKV, BlockView
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import TemporalHeadsConfig
from vidpipe.methods.stdha import STDHA, Groups, add_to_weight


class Difference(nn.Module):
    """Differences for `channels` (indices into the width): qkv (3, c, D) and proj (D, c)."""

    channels: Tensor

    def __init__(self, width: int, channels: list[int]) -> None:
        super().__init__()
        indices = torch.tensor(channels, dtype=torch.long)
        self.register_buffer("channels", indices, persistent=False)
        self.qkv = nn.Parameter(torch.zeros(3, len(channels), width))
        self.proj = nn.Parameter(torch.zeros(width, len(channels)))


def _shifted_channels(groups: Groups) -> list[int]:
    shifted = [dt != 0 for channels, dt in groups for _ in range(channels)]
    return [channel for channel, moved in enumerate(shifted) if moved]


class TemporalHeads(STDHA):
    name = "temporal_heads"
    Config = TemporalHeadsConfig
    config: TemporalHeadsConfig

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: TemporalHeadsConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        channels = [] if config.merged else [_shifted_channels(groups) for groups in self.offsets]
        if not config.merged and not any(channels):
            raise VidpipeError("methods.temporal_heads.head_offsets: no head is shifted")
        self.differences = nn.ModuleDict(
            {
                str(index): Difference(self.width, own)
                for index, own in enumerate(channels)
                if index in self.changed
            }
        )
        self.declare(self.differences, self.temporal_embedding, self.view.norm)

    def qkv(
        self, index: int, block: BlockView, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(index, block, x, queries)
        if self.config.merged:
            return q, k, v
        own = cast(Difference, self.differences[str(index)])
        q, k, v = (
            y.index_add(-1, own.channels, F.linear(tokens, weight))
            for y, tokens, weight in zip((q, k, v), (x[:, :queries], x, x), own.qkv, strict=True)
        )
        return q, k, v

    def out(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        y = super().out(index, block, x)
        if self.config.merged:
            return y
        own = cast(Difference, self.differences[str(index)])
        return y + F.linear(x[..., own.channels], own.proj)

    @torch.no_grad()
    def merge(self) -> TemporalHeads:
        """W += difference. Merging it again returns an equal model."""
        config = self.config.model_copy(update={"merged": True})
        vit = copy.deepcopy(self.vit)
        merged = TemporalHeads(vit, self.head.out_features, self.num_frames, config)
        self.copy_rest(merged)
        for index, difference in self.differences.items():
            block, own = merged.blocks[int(index)], cast(Difference, difference)
            whole = own.qkv.new_zeros(3, self.width, self.width).index_add(1, own.channels, own.qkv)
            for part, update in zip(QKV, whole, strict=True):
                add_to_weight(block, part, update)
            whole = own.proj.new_zeros(self.width, self.width)
            add_to_weight(block, "out", whole.index_add(1, own.channels, own.proj))
        return cast(TemporalHeads, merged.train(self.training))
