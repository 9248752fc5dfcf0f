"""mAP in a study: known answers, exchanges counted one by one, and how often its tests are wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from vidpipe.data.labels import join_labels
from vidpipe.errors import VidpipeError
from vidpipe.study import ranked
from vidpipe.study.null import null_study
from vidpipe.study.permutations import smallest_p, step_down_range
from vidpipe.study.ranked import RankedOutcomes
from vidpipe.study.statistics import accuracies, against, best_of, bootstrap, chance_p, score
from vidpipe.tasks.scores import Ranking

CLASSES = ("a", "b", "c")


def predictions(
    signals: Sequence[float],
    *,
    groups: int = 8,
    clips: int = 4,
    seeds: int = 1,
    folds: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Methods m0, m1, ... whose scores are the labels times a signal, and noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, clip in itertools.product(range(groups), range(clips)):
        labels = rng.random(len(CLASSES)) < 0.4
        text = join_labels(name for name, own in zip(CLASSES, labels, strict=True) if own)
        place = (f"g{group:02}c{clip}", f"g{group:02}", group % folds, text)
        for (m, signal), s in itertools.product(enumerate(signals), range(seeds)):
            rows.append((f"m{m}", s, *place, signal * labels + rng.normal(size=len(CLASSES))))
    columns = ["method", "seed", "id", "group", "fold", "label", "probabilities"]
    return pd.DataFrame(rows, columns=columns)


def outcomes(*signals: float, **options: int) -> RankedOutcomes:
    return RankedOutcomes.of(predictions(signals, **options), CLASSES)


def by_hand(table: pd.DataFrame) -> float:
    """Precision at the rank of each clip that has a class, among those of its fold and seed; their mean
    by class, and the mean over classes: of one method's table, by scikit-learn."""
    found = np.zeros((2, len(CLASSES)))
    for _, own in table.groupby(["fold", "seed"]):
        y = np.array([[name in text.split("|") for name in CLASSES] for text in own.label])
        p = np.stack(own.probabilities.tolist())
        for c in np.flatnonzero(y.any(0)):
            found[:, c] += average_precision_score(y[:, c], p[:, c]) * y[:, c].sum(), y[:, c].sum()
    return float(np.mean(found[0] / found[1]))


def test_map_of_one_training_is_scikit_learns_and_of_many_each_is_ranked_apart() -> None:
    for folds, seeds in ((1, 1), (3, 2)):
        table = predictions([0.5, 2.0], folds=folds, seeds=seeds)
        found = RankedOutcomes.of(table, CLASSES)
        expected = [by_hand(table[table.method == name]) for name in ("m0", "m1")]
        assert score(found) == pytest.approx(expected, abs=1e-12)
    # On one scale all could be ranked together; on other scales that would be wrong.
    shifted = table.assign(probabilities=table.probabilities + 100 * table.fold)
    assert score(RankedOutcomes.of(shifted, CLASSES)) == pytest.approx(expected)


def test_a_drawn_group_counts_as_often_as_it_was_drawn() -> None:
    table = predictions([0.8], groups=4, folds=1)
    found = RankedOutcomes.of(table, CLASSES)
    drawn = [table[table.group == g] for g in ("g00", "g02", "g02", "g03")]
    weights = np.array([1.0, 0, 2, 1])[found.groups]
    assert found.measure("map", np.ones(1), weights)[0] == pytest.approx(by_hand(pd.concat(drawn)))


def test_exchanges_of_few_groups_are_exact() -> None:
    """All 2**G ways to exchange groups between two methods, each made as a table and ranked anew."""
    table = predictions([0.6, 1.2], groups=4, folds=2)
    found = RankedOutcomes.of(table, CLASSES)
    groups = sorted(set(table.group))

    def apart(exchanged: Sequence[bool]) -> float:
        moved = table.group.isin([g for g, own in zip(groups, exchanged, strict=True) if own])
        other = table.method.map({"m0": "m1", "m1": "m0"})
        mixed = table.assign(method=table.method.mask(moved, other))
        one, two = (by_hand(mixed[mixed.method == name]) for name in ("m0", "m1"))
        return abs(two - one)

    reached = [
        apart(way) >= apart([False] * 4) - 1e-9 for way in itertools.product([0, 1], repeat=4)
    ]
    assert found.permutations().pair_p(1, 0) == pytest.approx(np.mean(reached))
    far = outcomes(0.0, 20.0, groups=6)
    assert far.permutations().pair_p(1, 0) == smallest_p(6)


def test_a_large_difference_is_seen_and_a_small_one_is_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranked, "PERMUTATIONS", 199)
    found = outcomes(0.0, 2.0, 2.02, groups=12, seeds=2)
    table = accuracies(found, 100, permutations=99)
    assert list(table.columns[:4]) == ["method", "map", "map_low", "map_high"]
    assert (table.map_low < table["map"]).all()
    assert (table["map"] < table.map_high).all()
    assert (table.p_chance[1:] < 0.05).all()
    assert table.p_chance[0] > 0.05
    best = best_of(table, "map")
    versus = against(found, best, chosen=True, resamples=50).set_index("method")
    assert versus.significant["m0"]
    assert not versus.significant[({"m1", "m2"} - {best}).pop()]
    assert (step_down_range(found.permutations(99)) <= 1).all()


def test_failed_trainings_are_left_out() -> None:
    table = predictions([0.5, 0.6, 0.7], seeds=2)
    part = table[~((table.method == "m0") & (table.seed == 1)) & (table.method != "m2")]
    found = RankedOutcomes.of(part, CLASSES, ["m0", "m1", "m2"])
    assert score(found)[0] == pytest.approx(by_hand(part[part.method == "m0"]))
    row = accuracies(found, 50, permutations=9).iloc[2]
    assert (row.clips, math.isnan(row["map"])) == (0, True)
    versus = against(found, "m0", chosen=True, resamples=50).set_index("method")
    assert math.isnan(versus.p["m2"])
    # No seed that both have: nothing can be exchanged.
    apart = table[(table.method == "m0") == (table.seed == 0)]
    assert RankedOutcomes.of(apart, CLASSES).permutations().pair_p(1, 0) == 1.0


def test_a_perfect_map_has_no_interval_and_wrong_tables_are_refused() -> None:
    row = accuracies(outcomes(1000.0), 50, permutations=9).iloc[0]
    assert (row["map"], math.isnan(row.map_low), math.isnan(row.map_high)) == (1.0, True, True)
    table = predictions([0.5])
    with pytest.raises(VidpipeError, match="twice"):
        RankedOutcomes.of(pd.concat([table, table]), CLASSES)
    with pytest.raises(VidpipeError, match="several labels"):
        RankedOutcomes.of(pd.concat([table, table.assign(seed=1, fold=9)]), CLASSES)


def test_the_envelope_is_each_stratums_own() -> None:
    scores, strata = np.array([[4.0], [3], [2], [4], [3], [2]]), np.array([0, 0, 0, 1, 1, 1])
    hits = np.array([[0.0], [1], [1], [1], [0], [1]])
    ranking = Ranking(scores, strata)
    assert ranking.found(hits, np.ones(6)).tolist() == [pytest.approx(1 / 2 + 2 / 3 + 1 + 2 / 3)]
    found = ranking.found(hits, np.ones(6), envelope=True)
    assert found.tolist() == [pytest.approx(2 / 3 + 2 / 3 + 1 + 2 / 3)]


@pytest.mark.long
def test_a_null_study_raises_a_false_alarm_in_a_twentieth_of_the_cases() -> None:
    found = null_study(outcomes(1.0, 1.0, 1.0, groups=8, clips=6), studies=60).set_index("test")
    used = ["chance", "reference", "best", "pair"]
    assert (found.low[used] <= 0.05).all(), found


def test_chance_is_not_beaten_by_what_knows_nothing() -> None:
    table = predictions([0.0], groups=6)
    constant = table.assign(probabilities=[np.zeros(3)] * len(table))
    assert chance_p(RankedOutcomes.of(constant, CLASSES), 99)[0] == 1.0
    draws = bootstrap(outcomes(1.0, 1.0), "map", 20)
    assert draws.shape == (20, 2)
