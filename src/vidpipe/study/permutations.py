"""Permutation tests of methods: where none is better, what they did on a group is any one's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidpipe.tasks.scores import Array

PERMUTATIONS = 9999
TOLERANCE = 1e-9
"""Sums of the same numbers in another order differ by less."""
CHUNK = 2_000_000
"""Numbers of a block of permutations in memory."""


def sign_flip(differences: Array, permutations: int = PERMUTATIONS) -> float:
    """Two-sided p that the sum of `differences` (G,), one a group, is 0, where each is as likely with
    either sign. Exact where 2**G is at most `permutations`, so its smallest value is 2 / 2**G."""
    from scipy.stats import permutation_test

    differences = differences[np.abs(differences) > TOLERANCE]
    if len(differences) < 2:
        return 1.0
    found = permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        n_resamples=permutations,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(min(1.0, found.pvalue))


def smallest_p(groups: int, comparisons: int = 1) -> float:
    """The least that `sign_flip` can find for so many groups, times Holm's first factor."""
    return min(1.0, comparisons * 2.0 ** (1 - groups))


class Permutations(ABC):
    """Of M methods, whose results on a group are exchanged between them.

    Attributes:
        totals: (M,) score of each, in any unit.
    """

    totals: Array

    @abstractmethod
    def pair_p(self, one: int, other: int) -> float:
        """Two-sided p that two methods are equal."""

    @abstractmethod
    def range_p(self, methods: Sequence[int], distance: float) -> float:
        """How often permutations put the best and the worst of `methods` so far apart, or farther."""


@dataclass(frozen=True)
class OfSums(Permutations):
    """Of a score that is a sum over groups: `sums` (M, G), right clips of each group."""

    sums: Array
    permutations: int = PERMUTATIONS

    @property
    def totals(self) -> Array:  # type: ignore[override]
        return np.asarray(self.sums.sum(axis=1))

    def pair_p(self, one: int, other: int) -> float:
        return sign_flip(self.sums[one] - self.sums[other], self.permutations)

    def range_p(self, methods: Sequence[int], distance: float) -> float:
        return _range_p(self.sums[list(methods)], distance, self.permutations)


def step_down_range(methods: Permutations) -> Array:
    """(M,) p of each method against the best of all.

    Under the null hypothesis a group's results belong to the methods in any order. The distance of the
    worst from the best is held against the range of all methods under such permutations; where it is
    significant, the worst is left out and the next is tested among the rest (so a method that is far
    behind hides no difference above it). p never falls on the way. The last pair is `pair_p`.
    """
    totals = methods.totals
    order = sorted(range(len(totals)), key=lambda i: -totals[i])
    p, highest = np.ones(len(totals)), 0.0
    # From the worst: each is tested among those that are at least as good.
    for size in range(len(order), 1, -1):
        worst = order[size - 1]
        found = methods.pair_p(order[0], worst)
        if size > 2:
            distance = float(totals[order[0]] - totals[worst])
            found = max(found, methods.range_p(order[:size], distance))
        highest = max(highest, found)
        p[worst] = highest
    return p


def _range_p(sums: Array, distance: float, permutations: int) -> float:
    """The share of permutations within groups whose totals lie `distance` apart or more."""
    methods, groups = sums.shape
    rng = np.random.default_rng(0)
    reached, left, at_once = 1, permutations, max(1, CHUNK // sums.size)
    while left:
        block = np.broadcast_to(sums.T, (min(left, at_once), groups, methods))
        totals = rng.permuted(block, axis=2).sum(axis=1)
        reached += int((np.ptp(totals, axis=1) >= distance - TOLERANCE).sum())
        left -= len(block)
    return reached / (permutations + 1)
