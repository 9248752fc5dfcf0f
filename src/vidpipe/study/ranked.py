"""Scores of several methods on the same clips, where the result is a mean average precision.

mAP is no mean over clips, so that no group has a part of it that could be added up or change its sign.
Every resample and every permutation ranks anew: a bootstrap weighs the clips of the drawn groups, and a
permutation gives whole groups of one method's scores to another.

Scores of different models are not on one scale (Forman and Scholz 2010, Apples-to-Apples in
Cross-Validation Studies). So a clip is ranked among those that its own model has tested, of its fold and
seed, and the average precision of a class is the mean, over all clips that have it, of the precision at
their rank. Of a single fold and seed that is the ordinary average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidpipe.data.labels import targets
from vidpipe.study.outcomes import Whole, codes, numbered
from vidpipe.study.permutations import TOLERANCE, Permutations
from vidpipe.tasks.scores import Array, Ranking, over_positives

PERMUTATIONS = 1999
"""Each ranks all clips anew."""
CHUNK = 500_000
"""Numbers that are ranked at once."""


@dataclass(frozen=True)
class RankedOutcomes:
    """What M methods, each trained with S seeds, gave N clips of G groups as scores of C classes.

    A row is what one training said of one clip.
    """

    score: ClassVar[str] = "map"
    measures: ClassVar[tuple[str, ...]] = ("map",)
    shares: ClassVar[bool] = False
    """Whether the score is a share of clips that are right."""

    methods: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Array
    """(N, C) 1 where a clip has the class."""
    groups: Whole
    """(N,) 0 to G - 1."""
    folds: Whole
    """(N,)"""
    known: NDArray[np.bool_]
    """(M, S, N) whether a training came to its end."""
    method: Whole
    seed: Whole
    clip: Whole
    """(K,) of each row."""
    scores: Array
    """(K, C)"""
    hits: Array | None = None
    """(K, C) 1 where a box is right, of task detection; None: where the clip has the class."""
    _rankings: dict[tuple[int, ...], tuple[Whole, Ranking]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(
        cls, table: pd.DataFrame, classes: Sequence[str], methods: Sequence[str] | None = None
    ) -> RankedOutcomes:
        """From one row a prediction: method, seed, fold, id, group, label (classes, as one text) and
        probabilities (C,); `methods` gives their order.

        Raises VidpipeError where a clip has two labels, groups or folds, or is predicted twice.
        """
        own = numbered(table, methods, ("label", "group", "fold"))
        method, seed, clip = own.where
        known = np.zeros(own.shape, bool)
        known[own.where] = True
        rows = [np.asarray(row, dtype=np.float64) for row in own.table.probabilities]
        return cls(
            own.methods,
            tuple(classes),
            targets(own.clips.label.tolist(), classes, several=True).astype(np.float64),
            codes(own.clips.group.astype(str).to_numpy()),
            codes(own.clips.fold.astype(str).to_numpy()),
            known,
            method,
            seed,
            clip,
            np.stack(rows) if rows else np.zeros((0, len(classes))),
        )

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    @property
    def num_seeds(self) -> int:
        return self.known.shape[1]

    def of_method(self, method: str) -> RankedOutcomes:
        """Those of one method, on the clips that it has."""
        return self.common([method])

    def common(self, methods: Sequence[str]) -> RankedOutcomes:
        """Those of `methods`, on the clips that all of them scored with some seed."""
        which = [self.methods.index(name) for name in methods]
        kept: NDArray[np.bool_] = np.asarray(self.known[which].any(axis=1).all(axis=0))
        number = np.full(len(self.methods), -1)
        number[which] = np.arange(len(which))
        rows = (number[self.method] >= 0) & kept[self.clip]
        return replace(
            self,
            methods=tuple(methods),
            labels=self.labels[kept],
            groups=codes(self.groups[kept]),
            folds=self.folds[kept],
            known=self.known[which][:, :, kept],
            method=number[self.method[rows]],
            seed=self.seed[rows],
            clip=(np.cumsum(kept) - 1)[self.clip[rows]],
            scores=self.scores[rows],
            hits=None if self.hits is None else self.hits[rows],
            _rankings={},
        )

    def with_labels(self, labels: Array) -> RankedOutcomes:
        return replace(self, labels=labels)

    def measure(self, name: str, seeds: Array, clips: Array) -> Array:
        """(M,) mAP at weights `seeds` (S,) and `clips` (N,), over the classes that a clip then has; NaN
        where a method has none of them."""
        return np.asarray(self.draws(name, seeds[None], clips[None])[0])

    def draws(self, name: str, seeds: Array, clips: Array) -> Array:
        """(W, M) of `measure` at W weights of seeds (W, S) and clips (W, N)."""
        assert name in self.measures, name
        found = [
            _means(self._aps(self.labels, seeds[part], clips[part]))
            for part in self._parts(len(seeds))
        ]
        return np.concatenate(found)

    def with_each(self, labels: Sequence[Array]) -> Array:
        """(W, M) mAP with each of W labels (N, C)."""
        seeds, clips = np.ones((1, self.num_seeds)), np.ones((1, len(self.labels)))
        found = [
            _means(self._aps(np.stack(labels[part]), seeds, clips))
            for part in self._parts(len(labels))
        ]
        return np.concatenate(found) if found else np.zeros((0, len(self.methods)))

    def class_aps(self) -> Array:
        """(M, C) average precision of each class; NaN where no clip has it."""
        seeds, clips = np.ones((1, self.num_seeds)), np.ones((1, len(self.labels)))
        return np.asarray(self._aps(self.labels, seeds, clips)[0])

    def _aps(self, labels: Array, seeds: Array, clips: Array) -> Array:
        """(W, M, C) with labels (N, C) or (W, N, C), at weights (W or 1, S) and (W or 1, N)."""
        values = []
        for number, known in enumerate(self.known):
            rows, ranking = self._ranked((number,))
            clip = self.clip[rows]
            weights = seeds[:, self.seed[rows]] * clips[:, clip]
            hits = labels[..., clip, :] if self.hits is None else self.hits[rows]
            found = ranking.found(hits, weights, envelope=self.hits is not None)
            there = (seeds @ known * clips)[:, None, :] @ labels
            values.append(over_positives(found, np.broadcast_to(there[:, 0], found.shape)))
        return np.stack(values, axis=1)

    def _parts(self, count: int) -> list[slice]:
        """Of `count` rankings, those that fit in memory together."""
        at_once = max(1, CHUNK // max(1, self.scores.size))
        return [slice(start, start + at_once) for start in range(0, count, at_once)]

    def permutations(self, count: int | None = None) -> RankedPermutations:
        """At most `count`, by default PERMUTATIONS; exact where there are no more than that."""
        return RankedPermutations(self, PERMUTATIONS if count is None else min(count, PERMUTATIONS))

    def _ranked(self, methods: Sequence[int]) -> tuple[Whole, Ranking]:
        """The rows of `methods`, of trainings that all of them have, and their ranking by training."""
        key = tuple(methods)
        if key not in self._rankings:
            shared = np.asarray(self.known[list(key)].all(axis=0))
            own = np.isin(self.method, key) & shared[self.seed, self.clip]
            rows = np.flatnonzero(own)
            strata = self.seed[rows] * (self.folds.max(initial=0) + 1) + self.folds[self.clip[rows]]
            self._rankings[key] = rows, Ranking(self.scores[rows], strata)
        return self._rankings[key]


class RankedPermutations(Permutations):
    """Whole groups of scores are exchanged between methods, and all is ranked anew."""

    def __init__(self, outcomes: RankedOutcomes, permutations: int) -> None:
        self.outcomes, self.count = outcomes, permutations
        every = range(len(outcomes.methods))
        own = np.broadcast_to(np.arange(len(every))[:, None], (len(every), outcomes.num_groups))
        self.totals = np.asarray(self._scores(every, own[None])[0])

    def pair_p(self, one: int, other: int) -> float:
        groups, pair = self.outcomes.num_groups, (one, other)
        exact = groups < 40 and 2**groups <= self.count
        if exact:
            # Of an exchange and its opposite the difference is the same: the first group stays.
            number = np.arange(2 ** max(0, groups - 1))
            own = number[:, None] >> np.arange(groups) & 1
        else:
            own = np.random.default_rng(0).integers(0, 2, (self.count + 1, groups))
            own[0] = 0
        apart = self._apart(pair, np.stack([own, 1 - own], axis=1))
        return float((apart >= apart[0] - TOLERANCE).mean())

    def range_p(self, methods: Sequence[int], distance: float) -> float:
        every = np.arange(len(methods))
        plain = np.broadcast_to(every, (self.count, self.outcomes.num_groups, len(methods)))
        mixed = np.random.default_rng(0).permuted(plain, axis=2).transpose(0, 2, 1)
        reached = (self._apart(methods, mixed) >= distance - TOLERANCE).sum()
        return float((1 + reached) / (self.count + 1))

    def _apart(self, methods: Sequence[int], source: Whole) -> Array:
        """(W,) distance of the best from the worst of K mixtures; `source` (W, K, G)."""
        found = [
            np.ptp(self._scores(methods, source[part]), axis=1)
            for part in self.outcomes._parts(len(source))
        ]
        return np.concatenate(found)

    def _scores(self, methods: Sequence[int], source: Whole) -> Array:
        """(W, K) mAP of mixtures: `source` (W, K, G), the place in `methods` of the one that a group's
        scores are taken from. 0 where there is no training that all have."""
        outcomes, every = self.outcomes, range(len(self.outcomes.methods))
        shared = np.asarray(outcomes.known.all(axis=0))
        rows, ranking = outcomes._ranked(methods if len(methods) == 2 else every)
        clip, of_row = outcomes.clip[rows], outcomes.method[rows]
        own = shared[outcomes.seed[rows], clip]
        taken = np.array(list(methods))[source][..., outcomes.groups[clip]] == of_row
        boxes = outcomes.hits is not None
        hits = outcomes.labels[clip] if outcomes.hits is None else outcomes.hits[rows]
        found = ranking.found(hits, (own & taken).astype(np.float64), envelope=boxes)
        positives = np.asarray(shared.sum(0) @ outcomes.labels)
        return np.nan_to_num(_means(over_positives(found, np.broadcast_to(positives, found.shape))))


def _means(aps: Array) -> Array:
    """(..., C) -> (...): mean over the classes that a clip has; NaN where there is none."""
    known = ~np.isnan(aps)
    count = known.sum(-1)
    total = np.where(known, aps, 0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
