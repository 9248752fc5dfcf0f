"""From which probability on a model of several labels says a class: chosen on training clips."""

from __future__ import annotations

from dataclasses import replace

import torch

from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.device import Precision
from vidpipe.evaluation.evaluate import Evaluator
from vidpipe.trained.trained_model import TrainedModel

MOST_CLIPS = 4000
"""Training clips that are looked at, evenly spread; rare classes then still have some."""


def with_thresholds(
    trained: TrainedModel, clips: Clips, device: torch.device, precision: Precision = "auto"
) -> TrainedModel:
    """`trained` with the thresholds of its classes, by one centre view of each of `clips`; a model whose
    task has no thresholds as it is."""
    if not trained.task.has_thresholds:
        return trained
    views = ViewSet(clips, trained.sampling, trained.transform)
    count = min(MOST_CLIPS, len(views))
    chosen = [i * len(views) // count for i in range(count)]
    home = next(trained.model.parameters()).device
    evaluator = Evaluator(
        trained.model.to(device),
        views,
        (trained.backbone.mean, trained.backbone.std),
        use_of_time=False,
        precision=precision,
        task=trained.task,
    )
    found = evaluator(chosen)
    trained.model.to(home)
    return replace(
        trained, thresholds=trained.task.choose_thresholds(found["probabilities"], found["label"])
    )
