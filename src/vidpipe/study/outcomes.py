"""Predictions of several methods on the same clips, as the arrays that statistics are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidpipe.errors import VidpipeError
from vidpipe.study.permutations import OfSums

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
MISSING = -1
COLUMNS = ("method", "seed", "id", "group", "label", "predicted")


class Numbered(NamedTuple):
    """Predictions of M methods, S seeds and N clips."""

    methods: tuple[str, ...]
    table: pd.DataFrame
    """K rows, a prediction each, by method, seed and clip."""
    clips: pd.DataFrame
    """N rows by id: what all predictions of a clip say of it."""
    where: tuple[Whole, Whole, Whole]
    """(K,) method, seed and clip of each row of `table`."""
    shape: tuple[int, int, int]
    """M, S, N."""


def numbered(table: pd.DataFrame, methods: Sequence[str] | None, same: tuple[str, ...]) -> Numbered:
    """Predictions of `methods` (in that order; None: all) with columns method, seed, id and `same`.

    Raises VidpipeError where a clip has two values of a column of `same`, or is predicted twice.
    """
    names = tuple(methods or dict.fromkeys(table.method))
    table = table[table.method.isin(names)]
    clips = table.groupby("id", sort=True)[list(same)]
    if len(several := clips.nunique().pipe(lambda t: t[(t > 1).any(axis=1)])):
        raise VidpipeError(
            f"clip {several.index[0]!r} has several {'s, '.join(same[:-1])}s or {same[-1]}s"
        )
    if table.duplicated(["method", "seed", "id"]).any():
        raise VidpipeError("a clip is predicted twice by the same method and seed")
    first = clips.first()
    places = (
        {name: i for i, name in enumerate(names)},
        {seed: i for i, seed in enumerate(sorted(table.seed.unique()))},
        {clip: i for i, clip in enumerate(first.index)},
    )
    columns = ("method", "seed", "id")
    found = [
        table[column].map(place).to_numpy(dtype=np.int64)
        for column, place in zip(columns, places, strict=True)
    ]
    order = np.lexsort(found[::-1])
    method, seed, clip = (own[order] for own in found)
    shape = (len(places[0]), len(places[1]), len(places[2]))
    return Numbered(names, table.iloc[order], first, (method, seed, clip), shape)


def codes(values: NDArray[np.generic]) -> Whole:
    """(N,) 0, 1, ... in the order of the sorted values."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Outcomes:
    """What M methods, each trained with S seeds, predicted for N clips of G groups.

    Example:
        >>> rows = [("a", 0, "c0", "ann", "run", "run"), ("a", 0, "c1", "bob", "run", "walk")]
        >>> found = Outcomes.of(pd.DataFrame(rows, columns=list(COLUMNS)))
        >>> found.top1().tolist(), found.num_groups
        ([0.5], 2)
    """

    score: ClassVar[str] = "top1"
    """What methods are compared by, the first of `measures`."""
    measures: ClassVar[tuple[str, ...]] = ("top1", "mean_class_accuracy")
    shares: ClassVar[bool] = True
    """Whether the score is a share of clips that are right."""

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
        own = numbered(table, methods, ("label", "group"))
        classes = tuple(sorted({*own.table.label, *own.table.predicted}))
        index = {name: i for i, name in enumerate(classes)}
        predicted = np.full(own.shape, MISSING, dtype=np.int64)
        predicted[own.where] = own.table.predicted.map(index).to_numpy()
        labels = own.clips.label.map(index).to_numpy(dtype=np.int64)
        return cls(
            own.methods, classes, predicted, labels, codes(own.clips.group.astype(str).to_numpy())
        )

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def num_seeds(self) -> int:
        return self.predicted.shape[1]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(M, S, N) whether a training came to its end."""
        return np.asarray(self.predicted != MISSING)

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

    def measure(self, name: str, seeds: Array, clips: Array) -> Array:
        """(M,) `top1` or `mean_class_accuracy` at these weights."""
        return {"top1": top1, "mean_class_accuracy": mean_class_accuracy}[name](self, seeds, clips)

    def draws(self, name: str, seeds: Array, clips: Array) -> Array:
        """(W, M) of `measure` at W weights of seeds (W, S) and clips (W, N)."""
        return np.array([self.measure(name, *own) for own in zip(seeds, clips, strict=True)])

    def with_each(self, labels: Sequence[Whole]) -> Array:
        """(W, M) score with each of W labels (N,)."""
        return np.array([self.with_labels(own).top1() for own in labels])

    def permutations(self, count: int | None = None) -> OfSums:
        """At most `count`; None: as many as `OfSums` makes."""
        return OfSums(self.group_sums()) if count is None else OfSums(self.group_sums(), count)

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
