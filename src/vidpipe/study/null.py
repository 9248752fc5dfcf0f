"""The null study: how often the tests of a study see what is not there.

Labels of saved predictions are permuted within groups, all methods seeing the same ones. Then no method
is better than chance or than another, and whatever a test finds is a false alarm.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vidpipe.study.permutations import Permutations, step_down_range
from vidpipe.study.statistics import ALPHA, AnyOutcomes, chance_p, holm, permuted_labels

PERMUTATIONS = 499
"""Of each test of a simulated study: enough for a decision at 5 %."""


def null_study(
    outcomes: AnyOutcomes,
    reference: str | None = None,
    studies: int = 200,
    alpha: float = ALPHA,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a test: studies, alarms (studies with any p of at most `alpha`), rate, and its exact 95 %
    bounds low and high.

    Tests: `chance` (any method above chance, Holm), `reference` (any method against `reference`, by
    default the first, Holm), `best` (any method against the best, step-down range), `pair` (the first
    two methods, one test) and `best by Holm`, which is not used: it ignores that the best was chosen.
    """
    from scipy.stats import binomtest

    outcomes = outcomes.common(outcomes.methods)
    names = list(outcomes.methods)
    fixed = names.index(reference) if reference in names else 0
    alarms = dict.fromkeys(("chance", "reference", "best", "pair", "best by Holm"), 0)
    rng = np.random.default_rng(seed)
    for _ in range(studies):
        study = outcomes.with_labels(permuted_labels(outcomes, rng))
        groups = study.permutations(PERMUTATIONS)
        best = int(groups.totals.argmax())

        def fixed_pairs(one: int, groups: Permutations = groups) -> list[float]:
            return [groups.pair_p(i, one) for i in range(len(names)) if i != one]

        found = {
            "chance": min(holm(chance_p(study, PERMUTATIONS).tolist())),
            "reference": min(holm(fixed_pairs(fixed)), default=1.0),
            "best": float(step_down_range(groups).min()),
            "pair": groups.pair_p(1, 0) if len(names) > 1 else 1.0,
            "best by Holm": min(holm(fixed_pairs(best)), default=1.0),
        }
        for name, p in found.items():
            alarms[name] += p <= alpha
    rows = []
    for name, count in alarms.items():
        low, high = binomtest(count, studies).proportion_ci(method="exact")
        rate = {"rate": count / studies, "low": float(low), "high": float(high)}
        rows.append({"test": name, "studies": studies, "alarms": count, **rate})
    return pd.DataFrame(rows)
