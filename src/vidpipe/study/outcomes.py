"""Predictions of several methods on the same clips, as the arrays that statistics are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidpipe.errors import VidpipeError

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
MISSING = -1
COLUMNS = ("method", "seed", "id", "group", "label", "predicted")


@dataclass(frozen=True)
class Outcomes:
    """What M methods, each trained with S seeds, predicted for N clips of G groups.

    Example:
        >>> rows = [("a", 0, "c0", "ann", "run", "run"), ("a", 0, "c1", "bob", "run", "walk")]
        >>> found = Outcomes.of(pd.DataFrame(rows, columns=list(COLUMNS)))
        >>> found.top1().tolist(), found.num_groups
        ([0.5], 2)
    """

    methods: tuple[str, ...]
    classes: tuple[str, ...]
    predicted: Whole
    """(M, S, N) class indices; MISSING where a training failed."""
    labels: Whole
    """(N,)"""
    groups: Whole
    """(N,) 0 to G - 1: clips of one person, camera or source video."""

    @classmethod
    def of(cls, table: pd.DataFrame, methods: Sequence[str] | None = None) -> Outcomes:
        """From one row a prediction, with the columns COLUMNS; `methods` gives their order.

        Raises VidpipeError where a clip has two labels, two groups or is predicted twice.
        """
        names = tuple(methods or dict.fromkeys(table.method))
        table = table[table.method.isin(names)]
        clips = table.groupby("id", sort=True)[["label", "group"]]
        if len(several := clips.nunique().pipe(lambda t: t[(t > 1).any(axis=1)])):
            raise VidpipeError(f"clip {several.index[0]!r} has several labels or groups")
        first = clips.first()
        classes = tuple(sorted({*table.label, *table.predicted}))
        index = {name: i for i, name in enumerate(classes)}
        seeds = {seed: i for i, seed in enumerate(sorted(table.seed.unique()))}
        rows = {clip: i for i, clip in enumerate(first.index)}
        where = (
            table.method.map({name: i for i, name in enumerate(names)}).to_numpy(),
            table.seed.map(seeds).to_numpy(),
            table.id.map(rows).to_numpy(),
        )
        if table.duplicated(["method", "seed", "id"]).any():
            raise VidpipeError("a clip is predicted twice by the same method and seed")
        predicted = np.full((len(names), len(seeds), len(rows)), MISSING, dtype=np.int64)
        predicted[where] = table.predicted.map(index).to_numpy()
        groups = np.unique(first.group.astype(str), return_inverse=True)[1].astype(np.int64)
        labels = first.label.map(index).to_numpy(dtype=np.int64)
        return cls(names, classes, predicted, labels, groups)

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def hits(self) -> Array:
        """(M, S, N) 1 where right, 0 where wrong, NaN where there is no prediction."""
        right = (self.predicted == self.labels).astype(np.float64)
        return np.where(self.predicted == MISSING, np.nan, right)

    def of_method(self, method: str) -> Outcomes:
        """Those of one method, on the clips that it has."""
        return self.common([method])

    def common(self, methods: Sequence[str]) -> Outcomes:
        """Those of `methods`, on the clips that all of them predicted with some seed."""
        which = [self.methods.index(name) for name in methods]
        predicted = self.predicted[which]
        clips = (predicted != MISSING).any(axis=1).all(axis=0)
        return replace(
            self,
            methods=tuple(methods),
            predicted=predicted[:, :, clips],
            labels=self.labels[clips],
            groups=np.unique(self.groups[clips], return_inverse=True)[1].astype(np.int64),
        )

    def with_labels(self, labels: Whole) -> Outcomes:
        return replace(self, labels=labels)

    def top1(self) -> Array:
        """(M,) share of the predictions that are right, over clips and seeds."""
        return top1(self, *self._plain())

    def mean_class_accuracy(self) -> Array:
        """(M,) mean of the classes' own top-1."""
        return mean_class_accuracy(self, *self._plain())

    def _plain(self) -> tuple[Array, Array]:
        return np.ones(self.predicted.shape[1]), np.ones(len(self.labels))

    def group_sums(self) -> Array:
        """(M, G) right clips of each group, each the mean over its seeds; a clip without counts 0."""
        found = self.predicted != MISSING
        count = np.maximum(found.sum(axis=1), 1)
        right = ((self.predicted == self.labels) & found).sum(axis=1) / count
        sums = [np.bincount(self.groups, weights=row, minlength=self.num_groups) for row in right]
        return np.array(sums)


def _weighted(outcomes: Outcomes, seeds: Array, clips: Array) -> tuple[Array, Array]:
    """(M, N) weight of what is right, and of what there is, at these weights of seeds and clips."""
    found = outcomes.predicted != MISSING
    right = (outcomes.predicted == outcomes.labels) & found
    return np.einsum("s,msn->mn", seeds, right) * clips, np.einsum(
        "s,msn->mn", seeds, found
    ) * clips


def top1(outcomes: Outcomes, seeds: Array, clips: Array) -> Array:
    """(M,) at weights `seeds` (S,) and `clips` (N,); NaN where a method has none of them."""
    right, all_ = (part.sum(axis=1) for part in _weighted(outcomes, seeds, clips))
    return np.divide(right, all_, out=np.full(len(right), np.nan), where=all_ > 0)


def mean_class_accuracy(outcomes: Outcomes, seeds: Array, clips: Array) -> Array:
    """As `top1`, the mean over the classes that have a clip of weight above 0."""
    values = []
    for right, all_ in zip(*_weighted(outcomes, seeds, clips), strict=True):
        total = np.bincount(outcomes.labels, weights=all_)
        hits = np.bincount(outcomes.labels, weights=right)
        known = total > 0
        values.append((hits[known] / total[known]).mean() if known.any() else np.nan)
    return np.array(values)
