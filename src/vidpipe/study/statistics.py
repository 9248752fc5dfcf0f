"""Intervals and tests that respect groups: clips of one person or source are no independent samples.

Intervals: bootstrap over groups and, crossed with them, seeds (Owen 2007, The pigeonhole bootstrap),
with the percentiles widened for few groups (Hesterberg 2015, What Teachers Should Know About the
Bootstrap, section 5.3). Tests: sign flips of whole groups, exact where there are few; Holm's correction
where pairs were fixed beforehand, and where the best was chosen on the same clips a step-down test of
the range, which accounts for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from vidpipe.study.outcomes import MISSING, Array, Outcomes, Whole, mean_class_accuracy, top1

RESAMPLES = 2000
PERMUTATIONS = 9999
ALPHA = 0.05
TOLERANCE = 1e-9
"""Sums of the same numbers in another order differ by less."""
CHUNK = 2_000_000
"""Numbers of a block of permutations in memory."""
Statistic = Callable[[Outcomes, Array, Array], Array]


def bootstrap(
    outcomes: Outcomes, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """(resamples, M) values of `statistic`, each for groups and seeds drawn with replacement.

    The draws are the same for all methods, so that differences of columns are paired.
    """
    rng = np.random.default_rng(seed)
    groups, seeds = outcomes.num_groups, outcomes.predicted.shape[1]
    values = np.empty((resamples, len(outcomes.methods)))
    for row in range(resamples):
        of_groups = np.bincount(rng.integers(0, groups, groups), minlength=groups)
        of_seeds = np.bincount(rng.integers(0, seeds, seeds), minlength=seeds).astype(float)
        values[row] = statistic(outcomes, of_seeds, of_groups[outcomes.groups].astype(float))
    return values


def bounds(values: Array, groups: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Percentile bounds of bootstrap `values`, widened as Student's t with groups - 1 degrees of
    freedom widens a normal interval; NaN for a single group."""
    from scipy.stats import norm, t

    values = values[~np.isnan(values)]
    if groups < 2 or not len(values):
        return math.nan, math.nan
    wide = math.sqrt(groups / (groups - 1)) * t.ppf(1 - alpha / 2, groups - 1)
    tail = float(norm.cdf(-wide))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


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


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the order given; NaN stays, and counts as no test.

    Example:
        >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = [math.nan] * len(p), 0.0
    for rank, (value, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[i] = highest
    return adjusted


def step_down_range(sums: Array, permutations: int = PERMUTATIONS) -> Array:
    """(M,) p of each method against the best of all, of `sums` (M, G): right clips of each group.

    Under the null hypothesis a group's results belong to the methods in any order. The distance of the
    worst from the best is held against the range of all methods under such permutations; where it is
    significant, the worst is left out and the next is tested among the rest (so a method that is far
    behind hides no difference above it). p never falls on the way. The last pair is `sign_flip`.
    """
    totals = sums.sum(axis=1)
    order = sorted(range(len(totals)), key=lambda i: -totals[i])
    p, highest = np.ones(len(totals)), 0.0
    # From the worst: each is tested among those that are at least as good.
    for size in range(len(order), 1, -1):
        among = sums[order[:size]]
        distance = totals[order[0]] - totals[order[size - 1]]
        pair = sign_flip(sums[order[0]] - sums[order[size - 1]], permutations)
        found = pair if size == 2 else max(pair, _range_p(among, distance, permutations))
        highest = max(highest, found)
        p[order[size - 1]] = highest
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


def chance_p(outcomes: Outcomes, permutations: int = 1999) -> Array:
    """(M,) one-sided p that a method is no better than labels permuted within groups; NaN where no group
    has clips of two classes, so that there is nothing to permute."""
    labels, groups = outcomes.labels, outcomes.groups
    if not any(len(np.unique(labels[groups == g])) > 1 for g in range(outcomes.num_groups)):
        return np.full(len(outcomes.methods), np.nan)
    rng = np.random.default_rng(0)
    own = outcomes.top1()
    reached = np.ones(len(own))
    for _ in range(permutations):
        chance = outcomes.with_labels(permuted_labels(outcomes, rng))
        reached += chance.top1() >= own - TOLERANCE
    return np.asarray(reached / (permutations + 1))


def permuted_labels(outcomes: Outcomes, rng: np.random.Generator) -> Whole:
    """(N,) labels, permuted within each group."""
    clips = np.argsort(outcomes.groups, kind="stable")
    # Sorted by (group, random number): within each group, another order of its own clips.
    labels = np.empty_like(outcomes.labels)
    labels[clips] = outcomes.labels[np.lexsort((rng.random(len(clips)), outcomes.groups))]
    return labels


def accuracies(
    outcomes: Outcomes,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
    permutations: int = 1999,
) -> pd.DataFrame:
    """One row a method: top1 and mean_class_accuracy with `_low` and `_high`; p_chance (Holm); and what
    they are made of: clips, groups, seeds.

    Where all predictions are right (or wrong) no resample differs, and the bound is the exact binomial
    one of so many clips, as if they were independent.
    """
    rows = []
    for method in outcomes.methods:
        own = outcomes.of_method(method)
        row: dict[str, object] = {"method": method}
        for name, statistic in (("top1", top1), ("mean_class_accuracy", mean_class_accuracy)):
            if not len(own.labels):
                row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
                continue
            value = float(getattr(own, name)()[0])
            found = bounds(bootstrap(own, statistic, resamples)[:, 0], own.num_groups, alpha)
            if value in (0.0, 1.0):
                found = _exact_bounds(value, len(own.labels), alpha)
            row |= {name: value, f"{name}_low": found[0], f"{name}_high": found[1]}
        seeds = int((own.predicted != MISSING).any(axis=2).sum())
        sizes = {"clips": len(own.labels), "groups": own.num_groups, "seeds": seeds}
        p = float(chance_p(own, permutations)[0]) if len(own.labels) else math.nan
        rows.append({**row, "p_chance": p, **sizes})
    table = pd.DataFrame(rows)
    table["p_chance"] = holm(table.p_chance.tolist())
    return table


def _exact_bounds(share: float, clips: int, alpha: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(round(share * clips), clips).proportion_ci(1 - alpha, "exact")
    return float(found.low), float(found.high)


def against(
    outcomes: Outcomes,
    reference: str,
    *,
    chosen: bool,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
) -> pd.DataFrame:
    """One row a method other than `reference`, on the clips that both have: difference (of top1, method
    minus reference) with the bounds low and high, p (sign flips of groups), p_adjusted, significant,
    groups.

    `chosen`: the reference is the best of these very predictions, and p_adjusted is of the step-down
    range; otherwise it was named beforehand, and p_adjusted is Holm's.
    """
    rows = []
    others = [name for name in outcomes.methods if name != reference]
    for method in others:
        both = outcomes.common([reference, method])
        if not len(both.labels):
            rows.append({"method": method, "groups": 0})
            continue
        draws = bootstrap(both, top1, resamples)
        low, high = bounds(draws[:, 1] - draws[:, 0], both.num_groups, alpha)
        first, second = both.top1()
        sums = both.group_sums()
        p = sign_flip(sums[1] - sums[0])
        row = {"difference": second - first, "low": low, "high": high, "p": p}
        rows.append({"method": method, **row, "groups": both.num_groups})
    columns = ["method", "difference", "low", "high", "p", "groups"]
    table = pd.DataFrame(rows, columns=columns).astype({"p": float})
    if chosen and others:
        known = [name for name in others if (table.p.notna() & (table.method == name)).any()]
        everyone = outcomes.common([reference, *known])
        found = dict(zip(everyone.methods, step_down_range(everyone.group_sums())))
        own = (found.get(name, math.nan) for name in table.method)
        table["p_adjusted"] = [max(p, q) for p, q in zip(table.p, own)]
    else:
        table["p_adjusted"] = holm(table.p.tolist())
    table["significant"] = table.p_adjusted <= alpha
    table.insert(1, "reference", reference)
    return table


def best_of(table: pd.DataFrame) -> str:
    """The method of highest top1 of `accuracies`; of equals, the first."""
    known = table.dropna(subset=["top1"])
    if known.empty:
        raise ValueError("no method has a prediction")
    return str(known.method.iloc[int(known.top1.to_numpy().argmax())])


def warnings(outcomes: Outcomes, alpha: float = ALPHA) -> list[str]:
    """What so few groups cannot show, one sentence each."""
    groups, methods = outcomes.num_groups, len(outcomes.methods)
    found = []
    if methods > 1 and (least := smallest_p(groups)) > alpha:
        found.append(
            f"{groups} groups are too few: no difference of methods can be significant at {alpha:g}, "
            f"since the smallest p that sign flips of {groups} groups can give is {least:.2g}; "
            f"{math.ceil(1 - math.log2(alpha))} groups are the least"
        )
    elif methods > 2 and (least := smallest_p(groups, methods - 1)) > alpha:
        found.append(
            f"{groups} groups are few: with Holm's correction for {methods - 1} comparisons the "
            f"smallest p is {least:.2g}, so no single method can be shown to differ from a reference"
        )
    if 2 <= groups < 10:
        found.append(
            f"intervals over {groups} groups are themselves uncertain: they say how much these groups "
            "differ, and hold for others only as far as these are a sample of them"
        )
    if groups < 2:
        found.append("there is one group only: no interval and no test is possible")
    return found
