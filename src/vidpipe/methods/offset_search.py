"""Which heads look at which frames, found from one training (`head_offsets: auto`).

1. Adapters are trained with every offset within reach given to heads in turn (`covering_design`): an
   ordinary training.
2. What each head's other frame is worth is read from it: the loss that it saves by integrated gradients
   (Sundararajan et al., ICML 2017), along the way from the image model's heads, which all look at their
   own frame, to the design. These shares add up to what the whole design saves.
3. The half that is worth least looks at its own frame again, and the rest is weighed anew, until no more
   heads are left than the budget allows.

What is found is an ordinary `head_offsets`, to be trained from the start.

Not chosen, after trying both on clips in which only frames two apart tell the class
(`tests/helpers/echo_clips.py`): a supernet whose heads draw their offsets in each step (Guo et al., ECCV
2020; by straight-through Gumbel-softmax, Dong and Yang, CVPR 2019), which never left chance within a
training in which the fixed design is at 100 %, since no adapter can rely on a frame that comes and goes;
the gradient of a softmax over offsets without noise (DARTS, Liu et al., ICLR 2019), with which Adam
makes as much of a useless head's gradient as of a useful one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidpipe.errors import VidpipeError
from vidpipe.methods.config import OffsetBudget
from vidpipe.methods.stdha import STDHA

POINTS = 4
"""Of the way from the image model to the design, at which gradients are taken."""
Design = tuple[tuple[int, ...], ...]
"""dt of each head of each block, as `head_offsets` has it."""
Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised clips (B, 3, T, H, W) and their targets, the same ones on every pass."""

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Summed over clips."""
    return nn.functional.cross_entropy(logits, target, reduction="sum")


def covering_design(depth: int, heads: int, reach: int) -> Design:
    """0, -1, 1, -2, 2, ... in turn over the heads. A block with too few heads for all leaves the rest
    to the next; with enough, the next begins one later, so that no head has one offset throughout.

    Example:
        >>> covering_design(2, 4, 2)
        ((0, -1, 1, -2), (2, 0, -1, 1))
    """
    offsets = (0, *(dt for d in range(1, reach + 1) for dt in (-d, d)))
    step = heads if heads < len(offsets) else 1
    return tuple(
        tuple(offsets[(head + step * block) % len(offsets)] for head in range(heads))
        for block in range(depth)
    )


def heads_allowed(
    budget: OffsetBudget, depth: int, heads: int, num_frames: int, method: str
) -> int:
    """Heads that may look at other frames, of all blocks. Raises VidpipeError where there is none, or
    no frame that far."""
    key, count = f"methods.{method}.head_offsets", depth * heads
    most = int(budget.share * count + 1e-9)
    if most == 0:
        raise VidpipeError(
            f"{key}: a share of {budget.share:g} of {count} heads leaves none to look at other frames; "
            f"the least is {1 / count:.2g}"
        )
    if budget.reach >= num_frames:
        raise VidpipeError(
            f"{key}: a reach of {budget.reach}, but a clip has {num_frames} frames; it is at most "
            f"{num_frames - 1}"
        )
    return most


@dataclass(frozen=True)
class Round:
    """One weighing of the heads."""

    design: Design
    """What was weighed."""
    saved: tuple[tuple[float, ...], ...]
    """Loss that each head of each block saves by its other frame; 0 where it looks at its own."""


def found_design(
    model: STDHA, most: int, batches: Batches, loss: Loss = cross_entropy
) -> tuple[Design, list[Round]]:
    """The design of at most `most` heads of a model trained with another one, and how it was found.

    Heads that save nothing are left out too, as long as one is left.

    Args:
        model: in any mode; it comes back as it was.
        most: heads of all blocks that may look at other frames, at least 1.
        batches: gone through `POINTS` times a round.
        loss: that is saved, of (logits, targets), summed over clips.
    """
    design, rounds = full(model), []
    while True:
        saved = saved_by_head(model, design, batches, loss)
        rounds.append(Round(design, tuple(map(tuple, saved.tolist()))))
        moved = torch.tensor(design) != 0
        count = int(moved.sum())
        last = count <= most
        keep = min(count, most) if last else max(most, -(-count // 2))
        order = (
            saved.masked_fill(~moved, -torch.inf).flatten().argsort(descending=True, stable=True)
        )
        kept = torch.zeros(order.numel(), dtype=torch.bool)
        kept[order[:keep]] = True
        if last:
            kept &= (saved.flatten() > 0) | (torch.arange(len(kept)) == order[0])
        design = tuple(
            tuple(dt if stays else 0 for dt, stays in zip(dts, own, strict=True))
            for dts, own in zip(design, kept.view_as(moved).tolist(), strict=True)
        )
        if last:
            return trimmed(design), rounds


def full(model: STDHA) -> Design:
    """dt of every head of every block of `model`."""
    heads = model.blocks[0].num_heads
    width = model.width // heads
    return tuple(
        tuple(
            [dt for channels, dt in groups for _ in range(channels)][head * width]
            for head in range(heads)
        )
        for groups in model.offsets
    )


def trimmed(design: Design) -> Design:
    """Without the zeros at the end of a block."""
    return tuple(dts[: max((i + 1 for i, dt in enumerate(dts) if dt), default=0)] for dts in design)


def saved_by_head(
    model: STDHA, design: Design, batches: Batches, loss: Loss = cross_entropy
) -> Tensor:
    """(depth, heads): the mean loss that each head of `design` saves, by integrated gradients. Their sum
    is about the loss of all heads at their own frame, less that of the design."""
    training = model.training
    asked = [p for p in model.parameters() if p.requires_grad]
    device = model.head.weight.device
    there = torch.stack([frame_sources(model.num_frames, dts) for dts in design]).to(device)
    own = frame_sources(model.num_frames, (0,)).to(device).expand_as(there)
    total, clips = torch.zeros(there.shape[:2], dtype=torch.float64), 0
    model.eval()
    try:
        for parameter in asked:
            parameter.requires_grad_(False)
        for point in range(POINTS):
            share = (point + 0.5) / POINTS
            for video, target in batches:
                where = (own + share * (there - own)).requires_grad_()
                with mixing(model, where), torch.enable_grad():
                    whole = loss(model(video.to(device)).float(), target.to(device))
                (slope,) = torch.autograd.grad(whole, where)
                total -= ((there - own) * slope).sum((2, 3)).double().cpu() / POINTS
                clips += len(video) if point == 0 else 0
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
        model.train(training)
    return total / max(1, clips)


@contextmanager
def mixing(model: STDHA, where: Tensor) -> Iterator[None]:
    """Within, the keys and values of a head at frame t are a sum over frames u, weighted by `where`,
    (depth, heads, T, T) [.., t, u], in place of its offset."""
    model.mixed = where
    try:
        yield
    finally:
        model.mixed = None


def frame_sources(num_frames: int, offsets: tuple[int, ...]) -> Tensor:
    """(offsets, T, T): a one at [o, t, u] where frame t reads frame u at that offset; its own frame
    where t + dt is outside the clip.

    Example:
        >>> frame_sources(3, (0, -1))[1].long()
        tensor([[1, 0, 0],
                [1, 0, 0],
                [0, 1, 0]])
    """
    t = torch.arange(num_frames)
    there = t + torch.tensor(offsets)[:, None]
    there = torch.where((there >= 0) & (there < num_frames), there, t)
    return nn.functional.one_hot(there, num_frames).float()
