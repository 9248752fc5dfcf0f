"""MixUp (Zhang et al. 2018) and CutMix (Yun et al. 2019) of pairs of clips, on the device.

A pair's weight depends on the seed, the epoch and the two clips only. torchvision's classes draw one
weight a batch from a global generator and mix each clip with the one before it, which would tie a
result to the number of training workers; the arithmetic of a pair is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidpipe.data.config import TransformConfig


@dataclass
class Mixed:
    video: Tensor
    """(B, 3, T, H, W), as it came in but for the mixing."""
    labels: Tensor
    """(B,) own class of each clip, or (B, C) its classes."""
    partners: Tensor
    """The same of the other clip of the pair; the own one where a clip has none."""
    weights: Tensor
    """(B,) share of the own class, in [0, 1]."""

    def targets(self, num_classes: int) -> Tensor:
        """(B, num_classes) soft labels."""
        own, other = (
            F.one_hot(y, num_classes) if y.ndim == 1 else y for y in (self.labels, self.partners)
        )
        return torch.lerp(other.float(), own.float(), self.weights[:, None])

    @property
    def heavier(self) -> Tensor:
        """The labels with the larger share, which accuracy is counted against."""
        own = self.weights >= 0.5
        return torch.where(
            own if self.labels.ndim == 1 else own[:, None], self.labels, self.partners
        )


class PairMixer:
    """Mixes clips (2k, 2k + 1) of a batch with each other; an odd last clip stays as it is."""

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, seed: int) -> None:
        self.mixup_alpha, self.cutmix_alpha, self.seed = mixup_alpha, cutmix_alpha, seed

    @classmethod
    def of(cls, config: TransformConfig, seed: int) -> PairMixer | None:
        """None where `transform` mixes nothing."""
        if config.mixup_alpha == config.cutmix_alpha == 0:
            return None
        return cls(config.mixup_alpha, config.cutmix_alpha, seed)

    def __call__(self, video: Tensor, labels: Tensor, clips: Sequence[int], epoch: int) -> Mixed:
        """`video` is (B, 3, T, H, W) float and is written to; `clips` are B indices of clips."""
        height, width = video.shape[-2:]
        weights = np.ones(len(clips), dtype=np.float32)
        blends = np.ones(len(clips), dtype=np.float32)
        boxes = []
        for k in range(0, len(clips) - 1, 2):
            # The last word keeps this stream apart from those of samples and orders.
            rng = np.random.default_rng([self.seed, epoch, clips[k], clips[k + 1], 1])
            cut = self.mixup_alpha == 0 or (self.cutmix_alpha > 0 and rng.random() < 0.5)
            alpha = self.cutmix_alpha if cut else self.mixup_alpha
            weight = rng.beta(alpha, alpha)
            if cut:
                top, bottom, left, right = _box(rng, weight, height, width)
                weight = 1 - (bottom - top) * (right - left) / (height * width)
                boxes.append((k, slice(top, bottom), slice(left, right)))
            else:
                blends[k : k + 2] = weight
            weights[k : k + 2] = weight
        # Neighbours of a pair change places; an odd last clip is its own partner.
        order = np.arange(len(clips)) ^ 1
        order[order == len(clips)] = len(clips) - 1
        partner = torch.from_numpy(order).to(video.device)
        if (blends < 1).any():
            blend = torch.from_numpy(blends).to(video.device).view(-1, 1, 1, 1, 1)
            video = torch.lerp(video[partner], video, blend)
        for k, rows, columns in boxes:
            pair = video[k : k + 2, ..., rows, columns]
            video[k : k + 2, ..., rows, columns] = pair.flip(0)
        return Mixed(video, labels, labels[partner], torch.from_numpy(weights).to(video.device))


def _box(
    rng: np.random.Generator, weight: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box of about 1 - weight of the picture, cut off at its edges."""
    y, x = rng.integers(height), rng.integers(width)
    half = 0.5 * math.sqrt(1 - weight)
    h, w = int(half * height), int(half * width)
    top, bottom = max(0, int(y) - h), min(height, int(y) + h)
    return top, bottom, max(0, int(x) - w), min(width, int(x) + w)
