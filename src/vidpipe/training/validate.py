"""Accuracy on the validation clips in the middle of a training: one centre view a clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from vidpipe.data.dataset import Views, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.device import autocast
from vidpipe.errors import TrainingStopped
from vidpipe.methods.base import VideoModel
from vidpipe.tasks.base import Task
from vidpipe.tasks.registry import SINGLE_LABEL
from vidpipe.training.config import TrainConfig
from vidpipe.training.parallel import all_sum, any_worker


@torch.no_grad()
def validate(
    model: VideoModel,
    val_set: Views,
    config: TrainConfig,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    stop: Callable[[], bool] = lambda: False,
    task: Task = SINGLE_LABEL,
) -> tuple[float, float]:
    """(loss, top1); each clip counted once however many workers. Raises TrainingStopped on `stop`."""
    model.eval()
    own = torch.utils.data.Subset(cast(Any, val_set), range(rank, len(val_set), world_size))
    sums = torch.zeros(3, dtype=torch.float64)
    batch_size = max(1, config.batch_size // world_size)
    workers, prefetch = config.loader_workers, config.prefetch
    loader = iter(view_loader(own, batch_size, workers, prefetch, device))
    # Rank 0 has as many batches as any: all take part in as many rounds, and stop in the same one.
    for _ in range(-(-len(range(0, len(val_set), world_size)) // batch_size)):
        batch = next(loader, None)
        if batch is not None:
            video = batch["video"].to(device, non_blocking=True)
            x = to_input(video[:, 0], *normalisation)
            labels = batch["label"].to(device, non_blocking=True)
            with autocast(config.precision, device):
                logits = model(x).float()
            loss = task.loss_sum(logits, labels).item()
            correct = task.correct(logits, labels).sum().item()
            sums += torch.tensor([loss, correct, len(labels)])
        if any_worker(stop(), device):
            raise TrainingStopped
    loss_sum, correct_sum, clips = all_sum(sums, device).tolist()
    return loss_sum / clips, correct_sum / clips
