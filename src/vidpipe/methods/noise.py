"""Dropout whose mask belongs to the clip: the same on one worker as on eight, in any part of a batch.

A mask is a hash of the clip's key (seed, epoch, clip: the trainer gives it), of the layer and of the
element, in plain tensor arithmetic: nothing is drawn, so nothing depends on what was drawn before, a
recomputed block sees its mask again, and every device gives the same one. Clip and layer give two keys;
an element costs half of a keyed 32-bit hash, whose word serves two elements. Not chosen: a generator
for each clip, which torch.compile cannot trace; one that draws for the global batch on every worker.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

IntOrTensor = TypeVar("IntOrTensor", int, Tensor)

GOLDEN = 0x9E3779B9
"""2^32 / golden ratio: its multiples are far from each other."""


def lowbias32(x: IntOrTensor) -> IntOrTensor:
    """A hash of 32-bit numbers kept in int64: Wellons' "lowbias32", in which every bit counts."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def keyed_words(count: int, first: Tensor, second: Tensor) -> Tensor:
    """(B, count) int32 hashes of 0, 1, ... under the keys `first` and `second`, (B,) numbers below 2^32.

    lowbias32 in int32, which every device multiplies as fast as it reads, of the multiples of GOLDEN;
    one key goes in before it and the other between its rounds.
    """
    a, b = ((key - 2**31).to(torch.int32)[:, None] for key in (first, second))
    x = torch.arange(count, dtype=torch.int32, device=first.device) * _signed(GOLDEN) ^ a
    x = _fold(x, 16) * 0x7FEB352D
    x = (_fold(x, 15) ^ b) * _signed(0x846CA68B)
    return _fold(x, 16)


def _fold(x: Tensor, by: int) -> Tensor:
    """x ^ (x >> by) of int32, without the copies of the sign that `>>` fills in."""
    return x ^ ((x >> by) & (2 ** (32 - by) - 1))


def _signed(number: int) -> int:
    return number - 2**32 if number >= 2**31 else number


class Keys:
    """Those of the clips that a model sees now; all its noisy layers share one such object."""

    def __init__(self) -> None:
        self.now: Tensor | None = None
        """(B,) 32-bit numbers in int64; None: drawn from torch's own generator."""


class ClipNoise(nn.Module):
    """What `ClipDropout` and `ClipDropPath` share. `declare` gives a layer its keys and its number."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keys = Keys()
        self.number = 0

    def kept(self, rows: int, each: int, device: torch.device) -> Tensor:
        """(rows, each) bool, false at `rate`; the rows are a number of frames of every clip."""
        keys = self.keys.now
        if keys is None:
            keys = torch.randint(2**32, (rows,), device=device)
        layer = [lowbias32((2 * self.number + i) * GOLDEN & 0xFFFFFFFF) for i in (0, 1)]
        count = rows // len(keys) * each
        words = keyed_words(-(-count // 2), *(lowbias32(keys ^ own) for own in layer))
        threshold = min(round(self.rate * 2**16), 2**16 - 1) - 2**15
        return (words.view(torch.int16)[:, :count] >= threshold).reshape(rows, each)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class ClipDropout(ClipNoise):
    """`nn.Dropout` on (B*k, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = self.kept(x.shape[0], x[0].numel(), x.device).view_as(x)
        return (x * kept).mul_(1 / (1 - self.rate))


class ClipDropPath(ClipNoise):
    """Stochastic depth (Huang et al., ECCV 2016) on (B*k, ...): whole rows, as timm's `DropPath`."""

    def forward(self, x: Tensor, branch: Tensor, scale: float = 1.0) -> Tensor:
        """x + scale * what is kept of `branch`, in one pass."""
        if not self.training or self.rate == 0:
            return torch.add(x, branch, alpha=scale)
        kept = self.kept(x.shape[0], 1, x.device).view(-1, *[1] * (x.ndim - 1))
        return torch.addcmul(x, branch, kept.to(branch.dtype), value=scale / (1 - self.rate))
