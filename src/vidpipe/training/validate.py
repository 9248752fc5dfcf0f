"""Accuracy on the validation clips in the middle of a training: one centre view a clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vidpipe.data.dataset import Views, view_loader
from vidpipe.data.model_input import batch_input
from vidpipe.device import autocast
from vidpipe.errors import TrainingStopped
from vidpipe.tasks.base import Task, more_inputs
from vidpipe.tasks.registry import SINGLE_LABEL
from vidpipe.training.config import TrainConfig
from vidpipe.training.parallel import all_sum, any_worker, gathered


class Validation(NamedTuple):
    loss: float
    top1: float
    score: float | None = None
    """The task's own, such as mAP, where that is not top1; None where no clip has a class."""


@torch.no_grad()
def validate(
    model: nn.Module,
    val_set: Views,
    config: TrainConfig,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    stop: Callable[[], bool] = lambda: False,
    task: Task = SINGLE_LABEL,
) -> Validation:
    """Of a task's network, or of a `Split` on kept features; each clip counted once however many
    workers. Raises TrainingStopped on `stop`."""
    model.eval()
    own = torch.utils.data.Subset(cast(Any, val_set), range(rank, len(val_set), world_size))
    sums = torch.zeros(3, dtype=torch.float64)
    batch_size = max(1, config.batch_size // world_size)
    workers, prefetch = config.loader_workers, config.prefetch
    ranked = task.score != "top1"
    seen: list[tuple[Tensor, Tensor]] = []  # logits and labels of this worker's clips
    loader = iter(view_loader(own, batch_size, workers, prefetch, device))
    # Rank 0 has as many batches as any: all take part in as many rounds, and stop in the same one.
    for _ in range(-(-len(range(0, len(val_set), world_size)) // batch_size)):
        batch = next(loader, None)
        if batch is not None:
            x = batch_input(batch, normalisation, device)
            labels = batch["label"].to(device, non_blocking=True)
            with autocast(config.precision, device):
                logits = model(x, *more_inputs(batch, device)).float()
            loss = task.loss_sum(logits, labels).item()
            correct = task.correct(logits, labels).sum().item()
            sums += torch.tensor([loss, correct, len(labels)])
            if ranked:
                seen += zip(logits.cpu().split(1), labels.cpu().split(1), strict=True)
        if any_worker(stop(), device):
            raise TrainingStopped
    loss_sum, correct_sum, clips = all_sum(sums, device).tolist()
    score = _score(task, seen, len(val_set), world_size) if ranked else None
    return Validation(loss_sum / clips, correct_sum / clips, score)


def _score(
    task: Task, seen: list[tuple[Tensor, Tensor]], clips: int, world_size: int
) -> float | None:
    """Of all workers' clips, in the order of the set: the same however many workers."""
    everyone = gathered(seen)
    starts = [0]
    for rank in range(world_size):
        starts.append(starts[-1] + len(range(rank, clips, world_size)))
    in_order = [everyone[starts[i % world_size] + i // world_size] for i in range(clips)]
    logits, labels = (torch.cat(parts) for parts in zip(*in_order, strict=True))
    return known_score(task, logits, labels)


def known_score(task: Task, logits: Tensor, labels: Tensor) -> float | None:
    """None where no clip has a class, so that there is none."""
    score = task.score_of(logits, labels)
    return None if math.isnan(score) else score
