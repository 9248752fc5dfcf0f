"""Numbers of predictions and the interval that another sample of clips would give. No torch: runs are
compared by their tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 1000
ECE_BINS = 15
Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Statistic = Callable[[NDArray[np.int64]], float]


def interval(statistic: Statistic, clips: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap over clips; `statistic` takes the indices of a sample (N,). Samples of
    which it is NaN, since no class has a clip, do not count."""
    if clips < 2:
        return float("nan"), float("nan")
    # scipy.stats.bootstrap gives the same numbers; to import it takes two seconds of every stage.
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(0, clips, clips)) for _ in range(resamples)]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean_class_accuracy(hits: Array, labels: Indices) -> float:
    """Mean over the classes that have a clip."""
    clips = np.bincount(labels)
    right = np.bincount(labels, weights=hits)
    return float((right[clips > 0] / clips[clips > 0]).mean())


def average_precision(scores: Array, labels: NDArray[Any], weights: Array | None = None) -> Array:
    """(C,) average precision of each class, as `sklearn.metrics.average_precision_score`; NaN of a class
    that no clip has.

    Args:
        scores: (N, C), any that rise with how likely the class is; equal ones share a threshold.
        labels: (N, C) 0 and 1.
        weights: (N,) how often each clip counts; None: once.
    """
    return RankedScores(scores, labels)(weights)


class Ranking:
    """Rows by falling score, for each of C columns; sorted once for many weights.

    Args:
        scores: (N, C), any that rise with how likely the class is; equal ones share a threshold.
        strata: (N,) rows that are ranked apart, such as by models whose scores cannot be compared.
    """

    def __init__(self, scores: Array, strata: Indices | None = None) -> None:
        rows = len(scores)
        of_row = np.zeros(rows, np.int64) if strata is None else strata
        self.order = np.lexsort((-scores, np.broadcast_to(of_row[:, None], scores.shape)), axis=0)
        ranked = np.take_along_axis(scores, self.order, 0)
        stratum = np.sort(of_row)
        new = np.diff(stratum, prepend=stratum[:1] - 1) != 0
        self.start = np.maximum.accumulate(np.where(new, np.arange(rows), 0))
        self.strata_left = float(new.sum()) - np.cumsum(new)
        # The last row of those with an equal score, for each row.
        last = (ranked[1:] != ranked[:-1]) | new[1:, None]
        ends = np.vstack([last, np.ones((min(rows, 1), scores.shape[1]), bool)])
        ends = np.where(ends, np.arange(rows)[:, None], rows)
        self.last = self._flat(np.minimum.accumulate(ends[::-1], axis=0)[::-1])

    def found(self, hits: Array, weights: Array, envelope: bool = False) -> Array:
        """(..., C) precision at each hit, added up: divided by the positives that there are, the AP.

        Args:
            hits: (N, C) or (..., N, C), 1 where a row is right.
            weights: (..., N) how often each row counts.
            envelope: precision is that of any lower threshold, if higher (PASCAL VOC 2010).
        """
        if not len(self.order):
            return np.zeros((*weights.shape[:-1], self.order.shape[1]))
        own = weights[..., self.order]
        right = own * self._at(hits, self._flat(self.order))
        found, seen = (self._until_last(np.cumsum(x, axis=-2)) for x in (right, own))
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        if envelope:  # in every stratum its own: 2 is more than any precision
            apart = 2 * self.strata_left[:, None]
            reverse = (precision + apart)[..., ::-1, :]
            precision = np.maximum.accumulate(reverse, axis=-2)[..., ::-1, :] - apart
        return np.asarray((right * precision).sum(-2))

    def _until_last(self, sums: Array) -> Array:
        """Of the stratum, until the last row of an equal score."""
        found = self._at(sums, self.last)
        if self.start.any():  # there are several strata
            found -= np.where(self.start[:, None] > 0, sums[..., self.start - 1, :], 0)
        return found

    def _flat(self, rows: Indices) -> Indices:
        """Rows of each column as places in both."""
        columns = rows.shape[1]
        return np.asarray(rows * columns + np.arange(columns))

    def _at(self, values: Array, places: Indices) -> Array:
        return np.asarray(values.reshape(*values.shape[:-2], -1)[..., places])


class RankedScores:
    """`average_precision` of the same scores under many weights.

    Example:
        >>> ranked = RankedScores(np.array([[0.9], [0.4], [0.6]]), np.array([[1.0], [1.0], [0.0]]))
        >>> ranked().round(4).tolist(), ranked(np.array([1.0, 0.0, 1.0])).tolist()
        ([0.8333], [1.0])
    """

    def __init__(self, scores: Array, labels: NDArray[Any]) -> None:
        self.ranking, self.labels = Ranking(scores), labels.astype(np.float64)

    def __call__(self, weights: Array | None = None) -> Array:
        own = np.ones(len(self.labels)) if weights is None else weights
        return over_positives(self.ranking.found(self.labels, own), own @ self.labels)


def over_positives(found: Array, positives: Array) -> Array:
    """(...) of `Ranking.found` and of how many there were to find; NaN where there were none."""
    return np.divide(found, positives, out=np.full_like(found, np.nan), where=positives > 0)


def mean_known(values: Array) -> float:
    """Mean of those that are not NaN; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def reliability(confidence: Array, hits: Array) -> pd.DataFrame:
    """Columns confidence, accuracy, clips: one row for each of `ECE_BINS` bins that has any."""
    import pandas as pd

    which = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    rows = [
        (float(confidence[own].mean()), float(hits[own].mean()), int(own.sum()))
        for own in (which == b for b in range(ECE_BINS))
        if own.any()
    ]
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "clips"])
