"""Intervals and tests of a study: known answers, properties, and how often they are wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, wilcoxon
from simulated_predictions import outcomes, predictions

from vidpipe.errors import VidpipeError
from vidpipe.study.null import null_study
from vidpipe.study.outcomes import COLUMNS, Outcomes
from vidpipe.study.permutations import OfSums, sign_flip, smallest_p, step_down_range
from vidpipe.study.statistics import (
    accuracies,
    against,
    best_of,
    bootstrap,
    bounds,
    chance_p,
    holm,
    permuted_labels,
    warnings,
)

# -- known answers --------------------------------------------------------------------------------


def test_accuracy_and_mean_class_accuracy_of_a_table_by_hand() -> None:
    rows = [
        *[("a", 0, f"r{i}", "g0", "run", "run" if i < 3 else "walk") for i in range(4)],
        ("a", 0, "w0", "g1", "walk", "run"),
        *[("b", 0, f"r{i}", "g0", "run", "run") for i in range(4)],  # b has no prediction of w0
    ]
    found = Outcomes.of(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert (found.methods, found.classes, found.num_groups) == (("a", "b"), ("run", "walk"), 2)
    assert found.top1().tolist() == [3 / 5, 1.0]
    assert found.mean_class_accuracy().tolist() == [pytest.approx(3 / 8), 1.0]
    both = found.common(["a", "b"])
    assert (len(both.labels), both.num_groups, both.top1().tolist()) == (4, 1, [3 / 4, 1.0])
    assert found.group_sums().tolist() == [[3, 0], [4, 0]]


def test_a_clip_has_one_label_and_one_prediction() -> None:
    row = ("a", 0, "c", "g", "run", "run")
    with pytest.raises(VidpipeError, match="'c' has several labels"):
        Outcomes.of(pd.DataFrame([row, ("b", 0, "c", "g", "walk", "run")], columns=list(COLUMNS)))
    with pytest.raises(VidpipeError, match="twice"):
        Outcomes.of(pd.DataFrame([row, row], columns=list(COLUMNS)))


def test_sign_flips_of_few_groups_are_exact() -> None:
    """All 2**G signs, counted here one by one; of ranks, they are Wilcoxon's exact test."""
    differences = np.array([3.0, 1.0, -2.0, 4.0, 0.5])
    sums = [np.dot(s, differences) for s in itertools.product([1, -1], repeat=5)]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    assert sign_flip(differences) == pytest.approx(expected)
    ranks = np.array([1.0, -2, 3, 4, 5, 6, -7, 8])
    assert sign_flip(ranks) == pytest.approx(wilcoxon(ranks, method="exact").pvalue)
    assert sign_flip(np.full(5, 2.0)) == 2 / 2**5 == smallest_p(5)
    assert sign_flip(np.zeros(9)) == 1.0


def test_holm_is_holms() -> None:
    # Holm (1979) on a textbook example, and NaN that counts as no test.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan, 0.02])[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(holm([math.nan])[0])
    assert holm([]) == []


def test_of_two_methods_the_range_is_the_pair() -> None:
    sums = np.array([[3.0, 2, 4, 4, 3, 5], [1.0, 2, 2, 3, 3, 2]])
    assert step_down_range(OfSums(sums)).tolist() == [1.0, sign_flip(sums[0] - sums[1])]


def test_the_bootstrap_of_one_clip_a_group_is_the_binomials() -> None:
    found = outcomes(0.7, groups=200, clips=1, seeds=1, alike=0.0)
    share = found.top1()[0]
    draws = bootstrap(found, "top1", 2000)[:, 0]
    assert draws.mean() == pytest.approx(share, abs=0.005)
    assert draws.std() == pytest.approx(math.sqrt(share * (1 - share) / 200), rel=0.06)
    low, high = bounds(draws, 200)
    assert high - low == pytest.approx(2 * 1.972 * draws.std(), rel=0.06)


def test_what_is_never_wrong_has_the_exact_binomial_bound() -> None:
    row = accuracies(outcomes(1 - 1e-12, groups=5, clips=4, seeds=1)).iloc[0]
    assert (row.top1, row.top1_high) == (1.0, 1.0)
    assert row.top1_low == pytest.approx(0.025 ** (1 / 20))


def test_a_large_difference_is_seen_and_a_small_one_is_noise() -> None:
    found = outcomes(0.3, 0.85, 0.86, groups=16)
    table = accuracies(found)
    assert table.groups.tolist() == [16] * 3
    assert (table.p_chance < 0.05).all()
    best = best_of(table)
    versus = against(found, best, chosen=True).set_index("method")
    assert set(versus.index) == {"m0", "m1", "m2"} - {best}
    assert versus.significant["m0"]
    assert not versus.significant[({"m1", "m2"} - {best}).pop()]
    probe = against(found, "m0", chosen=False)
    assert probe.significant.all()
    assert (probe.low > 0).all()


def test_a_method_without_predictions_is_a_row_without_numbers() -> None:
    table = predictions([0.5, 0.6])
    found = Outcomes.of(table, ["m0", "m1", "failed"])
    row = accuracies(found).iloc[2]
    assert (row.clips, row.groups) == (0, 0)
    assert math.isnan(row.top1)
    assert best_of(accuracies(found)) in ("m0", "m1")
    versus = against(found, "m1", chosen=True).set_index("method")
    assert math.isnan(versus.p_adjusted["failed"])
    assert not versus.significant["failed"]


@pytest.mark.parametrize(
    ("groups", "said"),
    [(1, "one group only"), (4, "too few"), (5, "too few"), (6, "Holm's"), (9, "uncertain")],
)
def test_too_few_groups_are_said(groups: int, said: str) -> None:
    found = outcomes(*[0.5] * (4 if groups < 9 else 3), groups=groups, seeds=1)
    assert said in "\n".join(warnings(found))
    can = smallest_p(groups) <= 0.05
    assert can == ("too few" not in "\n".join(warnings(found)) and groups > 1)
    table = against(found, "m0", chosen=True)
    assert can or not table.significant.any()


def test_many_groups_need_no_warning() -> None:
    assert warnings(outcomes(0.5, 0.6, groups=40, seeds=1)) == []


# -- properties -----------------------------------------------------------------------------------

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(p_values)
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    found = holm(p)
    assert all(a <= b <= min(1, len(p) * a) + 1e-12 for a, b in zip(p, found, strict=True))
    # It is stricter than the control of false discoveries under any dependence of one test.
    assert min(found) >= false_discovery_control(p).min() - 1e-12
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


group_differences = st.lists(st.integers(-6, 6), min_size=1, max_size=9)


@given(group_differences)
def test_a_p_value_is_symmetric_and_reachable(differences: list[int]) -> None:
    d = np.array(differences, dtype=float)
    p = sign_flip(d)
    assert smallest_p(len(d)) - 1e-12 <= p <= 1
    assert sign_flip(-d) == pytest.approx(p)
    assert sign_flip(d[::-1]) == pytest.approx(p)


sums = st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=2, max_size=4)


@given(sums)
def test_the_best_is_never_behind_itself_and_the_worst_never_ahead(rows: list[list[int]]) -> None:
    table = np.array(rows, dtype=float)
    p, totals = step_down_range(OfSums(table, 99)), table.sum(axis=1)
    assert p.max() == 1.0
    assert p[totals.argmax()] == 1.0
    order = np.argsort(-totals, kind="stable")
    assert (np.diff(p[order]) <= 0).all()


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 5))
def test_labels_move_within_their_group_only(seed: int, groups: int, clips: int) -> None:
    found = outcomes(0.5, groups=groups, clips=clips, seeds=1)
    labels = permuted_labels(found, np.random.default_rng(seed))
    for group in range(groups):
        own = found.groups == group
        assert sorted(labels[own]) == sorted(found.labels[own])


@given(st.permutations(range(24)))
def test_the_order_of_rows_changes_nothing(order: list[int]) -> None:
    table = predictions([0.4, 0.7], groups=3, clips=4, seeds=1)
    one, two = (Outcomes.of(t, ["m0", "m1"]) for t in (table, table.iloc[list(order)]))
    for name in ("predicted", "labels", "groups"):
        assert (getattr(one, name) == getattr(two, name)).all()


# -- how often they are wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("methods", [2, 5])
def test_a_null_study_raises_a_false_alarm_in_a_twentieth_of_the_cases(methods: int) -> None:
    """Labels are permuted within groups; 11 alarms in 100 studies still agree with 5 % (95 % bounds)."""
    found = null_study(outcomes(*[0.6] * methods, groups=14, seeds=1), studies=100).set_index(
        "test"
    )
    used = ["chance", "reference", "best", "pair"]
    assert (found.low[used] <= 0.05).all(), found
    assert (found.rate[used] <= 0.113).all(), found


def test_intervals_hold_the_truth_for_new_groups() -> None:
    """Over 9 groups whose clips are alike, 88 at least of 100 intervals of 95 % hold the truth. Over
    clips, as if they were independent, they are too narrow."""
    truth = np.mean([outcomes(0.7, groups=400, seeds=1, seed=s).top1()[0] for s in range(3)])
    held = clips_held = 0
    for seed in range(100):
        found = outcomes(0.7, groups=9, seeds=1, seed=1000 + seed)
        low, high = bounds(bootstrap(found, "top1", 400)[:, 0], 9)
        held += low <= truth <= high
        share = found.top1()[0]
        half = 1.96 * math.sqrt(share * (1 - share) / len(found.labels))
        clips_held += share - half <= truth <= share + half
    assert held >= 88, held
    assert clips_held < held, (clips_held, held)


def test_chance_is_not_beaten_by_what_knows_nothing_of_the_clip() -> None:
    table = predictions([0.9], groups=10, seeds=1).assign(predicted="k0")
    found = Outcomes.of(table)
    assert found.top1()[0] == 1 / 8
    assert chance_p(found)[0] == 1.0
    assert math.isnan(chance_p(found, permutations=0)[0])
    one_class = Outcomes.of(predictions([0.9], groups=6, clips=2, seeds=1).query("label == 'k0'"))
    assert math.isnan(chance_p(one_class)[0])
