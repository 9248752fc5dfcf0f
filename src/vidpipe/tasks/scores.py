"""Numbers of predictions and the interval that another sample of clips would give. No torch: runs are
compared by their tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Statistic = Callable[[NDArray[np.int64]], float]


def interval(statistic: Statistic, clips: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap over clips; `statistic` takes the indices of a sample (N,)."""
    if clips < 2:
        return float("nan"), float("nan")
    # scipy.stats.bootstrap gives the same numbers; to import it takes two seconds of every stage.
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(0, clips, clips)) for _ in range(resamples)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean_class_accuracy(hits: Array, labels: Indices) -> float:
    """Mean over the classes that have a clip."""
    clips = np.bincount(labels)
    right = np.bincount(labels, weights=hits)
    return float((right[clips > 0] / clips[clips > 0]).mean())
