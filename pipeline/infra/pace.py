"""How long a training takes, from a few of its own steps, and how a person says so."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from pipeline.infra.training_setup import TrainingSetup
from vidpipe.training.loop import Trainer
from vidpipe.training.metrics import StepInfo
from vidpipe.training.state import Progress
from vidpipe.training.validate import validate


def real_steps(trainer: Trainer) -> Iterator[StepInfo]:
    """The Trainer's own steps, endlessly and without validation; the model changes in memory only."""
    while True:
        yield from trainer.steps()
        done = trainer.progress
        over = done.step >= trainer.total_steps
        trainer.progress = Progress() if over else Progress(step=done.step, epoch=done.epoch + 1)


def view_seconds(setup: TrainingSetup, device: torch.device) -> float:
    """Seconds a clip of validation, from one batch of it, decoded in this process."""
    config = setup.params.train.model_copy(update={"loader_workers": 0})
    clips = min(len(setup.val_set), max(1, config.batch_size // max(1, config.num_workers)))
    part = torch.utils.data.Subset(setup.val_set, range(clips))
    normalisation = setup.trained.backbone.mean, setup.trained.backbone.std
    model = setup.trained.task.network(setup.trained.model.to(device))
    started = time.perf_counter()
    validate(model, part, config, normalisation, device, task=setup.trained.task)
    return (time.perf_counter() - started) / clips


def duration(seconds: float) -> str:
    """`seconds` in the unit that a person would use."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
