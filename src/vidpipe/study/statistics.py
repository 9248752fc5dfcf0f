"""Intervals and tests that respect groups: clips of one person or source are no independent samples.

Intervals: bootstrap over groups and, crossed with them, seeds (Owen 2007, The pigeonhole bootstrap),
with the percentiles widened for few groups (Hesterberg 2015, What Teachers Should Know About the
Bootstrap, section 5.3). Tests: results on whole groups are exchanged between methods, exactly where
there are few; of top-1 these are sign flips, of a mAP all is ranked anew (`ranked.py`). Holm's
correction where pairs were fixed beforehand, and where the best was chosen on the same clips a step-down
test of the range, which accounts for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vidpipe.study.outcomes import Array, Outcomes
from vidpipe.study.permutations import TOLERANCE, smallest_p, step_down_range
from vidpipe.study.ranked import RankedOutcomes

RESAMPLES = 2000
ALPHA = 0.05
AnyOutcomes = Outcomes | RankedOutcomes


def bootstrap(outcomes: AnyOutcomes, name: str, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """(resamples, M) values of the measure `name`, each for groups and seeds drawn with replacement.

    The draws are the same for all methods, so that differences of columns are paired.
    """
    rng = np.random.default_rng(seed)
    groups, seeds = outcomes.num_groups, outcomes.num_seeds
    of_groups, of_seeds = np.empty((resamples, groups)), np.empty((resamples, seeds))
    for row in range(resamples):
        of_groups[row] = np.bincount(rng.integers(0, groups, groups), minlength=groups)
        of_seeds[row] = np.bincount(rng.integers(0, seeds, seeds), minlength=seeds)
    return outcomes.draws(name, of_seeds, of_groups[:, outcomes.groups])


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


def score(outcomes: AnyOutcomes, name: str | None = None) -> Array:
    """(M,) the measure `name`, by default what methods are compared by."""
    seeds, clips = np.ones(outcomes.num_seeds), np.ones(len(outcomes.labels))
    return outcomes.measure(name or outcomes.score, seeds, clips)


def chance_p(outcomes: AnyOutcomes, permutations: int = 1999) -> Array:
    """(M,) one-sided p that a method is no better than labels permuted within groups; NaN without
    permutations, and where no group has clips of two labels, so that there is nothing to permute."""
    labels, groups = outcomes.labels, outcomes.groups
    if not permutations:
        return np.full(len(outcomes.methods), np.nan)
    if isinstance(outcomes, RankedOutcomes) and outcomes.hits is not None:
        # Actions of a video go on from frame to frame: its labels cannot be exchanged.
        return np.full(len(outcomes.methods), np.nan)
    if not any(len(np.unique(labels[groups == g], axis=0)) > 1 for g in range(outcomes.num_groups)):
        return np.full(len(outcomes.methods), np.nan)
    rng = np.random.default_rng(0)
    own = score(outcomes)
    chance = outcomes.with_each([permuted_labels(outcomes, rng) for _ in range(permutations)])
    reached = 1 + (chance >= own - TOLERANCE).sum(axis=0)
    return np.asarray(reached / (permutations + 1))


def permuted_labels(outcomes: AnyOutcomes, rng: np.random.Generator) -> Any:
    """(N, ...) labels, permuted within each group."""
    clips = np.argsort(outcomes.groups, kind="stable")
    # Sorted by (group, random number): within each group, another order of its own clips.
    labels = np.empty_like(outcomes.labels)
    labels[clips] = outcomes.labels[np.lexsort((rng.random(len(clips)), outcomes.groups))]
    return labels


def accuracies(
    outcomes: AnyOutcomes,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
    permutations: int = 1999,
) -> pd.DataFrame:
    """One row a method: each of `measures` with `_low` and `_high`; p_chance (Holm); and what
    they are made of: clips, groups, seeds.

    Where all predictions are right (or wrong) no resample differs. The bound is then the exact binomial
    one of so many clips, as if they were independent; of a mAP of 1 or 0 there is none.
    """
    rows = []
    for method in outcomes.methods:
        own = outcomes.of_method(method)
        row: dict[str, object] = {"method": method}
        for name in outcomes.measures:
            if not len(own.labels):
                row |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
                continue
            value = float(score(own, name)[0])
            found = bounds(bootstrap(own, name, resamples)[:, 0], own.num_groups, alpha)
            if value in (0.0, 1.0):
                exact = outcomes.shares
                found = (
                    _exact_bounds(value, len(own.labels), alpha) if exact else (math.nan, math.nan)
                )
            row |= {name: value, f"{name}_low": found[0], f"{name}_high": found[1]}
        seeds = int(own.known.any(axis=2).sum())
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
    outcomes: AnyOutcomes,
    reference: str,
    *,
    chosen: bool,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
) -> pd.DataFrame:
    """One row a method other than `reference`, on the clips that both have: difference (of the score,
    method minus reference) with the bounds low and high, p (`Permutations.pair_p`), p_adjusted,
    significant, groups.

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
        draws = bootstrap(both, both.score, resamples)
        low, high = bounds(draws[:, 1] - draws[:, 0], both.num_groups, alpha)
        first, second = score(both)
        p = both.permutations().pair_p(1, 0)
        row = {"difference": second - first, "low": low, "high": high, "p": p}
        rows.append({"method": method, **row, "groups": both.num_groups})
    columns = ["method", "difference", "low", "high", "p", "groups"]
    table = pd.DataFrame(rows, columns=columns).astype({"p": float})
    if chosen and others:
        known = [name for name in others if (table.p.notna() & (table.method == name)).any()]
        everyone = outcomes.common([reference, *known])
        found = dict(zip(everyone.methods, step_down_range(everyone.permutations())))
        own = (found.get(name, math.nan) for name in table.method)
        table["p_adjusted"] = [max(p, q) for p, q in zip(table.p, own)]
    else:
        table["p_adjusted"] = holm(table.p.tolist())
    table["significant"] = table.p_adjusted <= alpha
    table.insert(1, "reference", reference)
    return table


def best_of(table: pd.DataFrame, measure: str = "top1") -> str:
    """The method of highest `measure` of `accuracies`; of equals, the first."""
    known = table.dropna(subset=[measure])
    if known.empty:
        raise ValueError("no method has a prediction")
    return str(known.method.iloc[int(known[measure].to_numpy().argmax())])


def warnings(outcomes: AnyOutcomes, alpha: float = ALPHA) -> list[str]:
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
