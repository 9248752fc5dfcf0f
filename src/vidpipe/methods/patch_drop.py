"""Training on some of the patches: the same ones in every frame of a clip, all of them at inference.

FLIP (Li et al., CVPR 2023) and PatchDropout (Liu et al., WACV 2023) drop patches of images; here a clip
keeps the same places over time, so that temporal attention, convolutions and shifted heads find their
neighbours. Class token and registers stay. Which patches stay depends on the clip's key (seed, epoch,
clip), as dropout's masks do: the same on one worker as on eight, and after any resumption.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidpipe.methods.noise import keyed_words, lowbias32

LAYER = 0x7A7C4D09
"""Keeps these hashes apart from those of the noisy layers, which are numbered from 0."""


@dataclass(frozen=True)
class PatchDrop:
    """`share` of the patches is left out: at random, or those that change least over the clip.

    Example:
        >>> kept = PatchDrop(0.5)(torch.zeros(2, 3, 8, 48, 48), (4, 4), torch.tensor([1, 2]))
        >>> kept.shape
        torch.Size([2, 8])
    """

    share: float
    by: Literal["random", "motion"] = "random"

    def __call__(self, video: Tensor, grid: tuple[int, int], keys: Tensor | None) -> Tensor:
        """Patches that stay, ascending.

        Args:
            video: (B, 3, T, H, W) clips; at random, any tensor of B of them, such as kept features.
            grid: rows and columns of patches.
            keys: (B,) of the clips, as `Keys.now`; None: drawn from torch's own generator.

        Returns:
            (B, n) int64 numbers of patches, row by row; n is at least 1.
        """
        count = grid[0] * grid[1]
        if keys is None:
            keys = torch.randint(2**32, (len(video),), device=video.device)
        words = keyed_words(count, lowbias32(keys ^ LAYER), lowbias32(keys ^ LAYER + 1))
        order = words.argsort(dim=1, stable=True)
        if self.by == "motion":  # equal ones, such as those of a still clip, stay in random order
            moving = motion(video, grid).gather(1, order)
            order = order.gather(1, moving.argsort(dim=1, descending=True, stable=True))
        return order[:, : max(1, count - round(self.share * count))].sort(dim=1).values


def motion(video: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 3, T, H, W) -> (B, patches): mean absolute difference of neighbouring frames."""
    if video.shape[2] < 2:
        return video.new_zeros(len(video), grid[0] * grid[1])
    change = video.float().diff(dim=2).abs().mean(dim=(1, 2))
    return F.adaptive_avg_pool2d(change[:, None], grid).flatten(1)


def only(x: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """(B*T, prefix + patches, D) tokens -> (B*T, prefix + n, D), those of `kept`, (B*T, n)."""
    index = kept[:, :, None].expand(-1, -1, x.shape[-1])
    return torch.cat([x[:, :prefix], x[:, prefix:].gather(1, index)], dim=1)
