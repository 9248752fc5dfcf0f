"""What a trained model says of the windows of a video, as the stretches in which something happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vidpipe.tasks.timeline import Merging, Stretch, merge
from vidpipe.trained.trained_model import TrainedModel

STEPS = 4
"""Windows begin a window's length over this apart, where no step is given."""


def stretches(
    trained: TrainedModel, windows: Sequence[tuple[float, float, Any]], merging: Merging
) -> list[Stretch]:
    """Of one video and model: windows are start, end and (C,) probabilities."""
    starts, ends, probabilities = zip(*windows, strict=True)
    return merge(
        starts,
        ends,
        np.stack([p.double().numpy() for p in probabilities]),
        trained.classes,
        thresholds=trained.thresholds,
        background=trained.background,
        merging=merging,
    )
