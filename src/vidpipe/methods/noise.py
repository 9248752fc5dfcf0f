"""Dropout whose mask belongs to the clip: the same on one worker as on eight, in any part of a batch.

A mask is a hash of the clip's key (seed, epoch, clip: the trainer gives it), of the layer and of the
element, in plain tensor arithmetic: nothing is drawn, so nothing depends on what was drawn before, a
recomputed block sees its mask again, and every device gives the same one. Not chosen: a generator for
each clip, which torch.compile cannot trace; one that draws for the global batch on every worker.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

GOLDEN = 0x9E3779B9
"""2^32 / golden ratio: its multiples are far from each other."""


def lowbias32(x: Tensor) -> Tensor:
    """A hash of 32-bit numbers kept in int64: Wellons' "lowbias32", in which every bit counts."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


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
        elements = torch.arange(rows // len(keys) * each, device=device)
        places = lowbias32((elements + self.number * GOLDEN) & 0xFFFFFFFF)
        return (lowbias32(places ^ keys[:, None]) >= round(self.rate * 2**32)).view(rows, each)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class ClipDropout(ClipNoise):
    """`nn.Dropout` on (B*k, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = self.kept(x.shape[0], x[0].numel(), x.device).view_as(x)
        return x.masked_fill(~kept, 0) / (1 - self.rate)


class ClipDropPath(ClipNoise):
    """Stochastic depth (Huang et al., ECCV 2016) on (B*k, ...): whole rows, as timm's `DropPath`."""

    def forward(self, x: Tensor, branch: Tensor, scale: float = 1.0) -> Tensor:
        """x + scale * what is kept of `branch`, in one pass."""
        if not self.training or self.rate == 0:
            return torch.add(x, branch, alpha=scale)
        kept = self.kept(x.shape[0], 1, x.device).view(-1, *[1] * (x.ndim - 1))
        return torch.addcmul(x, branch, kept.to(branch.dtype), value=scale / (1 - self.rate))
