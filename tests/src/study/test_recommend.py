"""The recommendation follows its rules, on tables made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.study.recommend import fell_apart, recommendation, undertrained
from vidpipe.viz.study import pareto_front

COSTS = {"gflops": 1.0, "new_at_inference_m": 0.0, "training_gflops": 3.0}


def tables(
    rows: dict[str, dict[str, Any]], best: str, groups: int = 20
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame, int]:
    """`rows`: top1, p (adjusted, against the best) and costs of each method."""
    accuracy = pd.DataFrame(
        [
            {**COSTS, "method": name, "p_chance": 0.001, **row}
            | {"top1_low": row["top1"] - 0.05, "top1_high": row["top1"] + 0.05}
            for name, row in rows.items()
        ]
    )
    versus = pd.DataFrame(
        [
            {
                "method": name,
                "difference": row["top1"] - rows[best]["top1"],
                "p_adjusted": row["p"],
                "significant": row["p"] <= 0.05,
            }
            for name, row in rows.items()
            if name != best
        ]
    )
    return accuracy, versus, versus.head(0).assign(reference=""), pd.DataFrame(), groups


def test_the_cheapest_within_noise_of_the_best_is_recommended() -> None:
    said = recommendation(
        *tables(
            {
                "probe": {"top1": 0.6, "p": 0.001},
                "aim": {"top1": 0.91, "p": 1, "gflops": 1.4},
                "zeroi2v": {"top1": 0.90, "p": 0.7, "gflops": 1.01},
                "st_adapter": {"top1": 0.89, "p": 0.6, "gflops": 1.02, "training_gflops": 2.5},
            },
            "aim",
        )
    )
    # ZeroI2V and ST-Adapter cost the same at inference (2 %); ST-Adapter is cheaper to train.
    assert said[0].startswith("st_adapter: within noise of the best (aim) with 89.0 %")
    assert any(line.startswith("aim is within noise of the best, costs 1.4 times") for line in said)
    assert "probe is 31 points behind aim (p 0.001)." in said


def test_what_is_far_behind_is_no_candidate_though_the_test_cannot_tell() -> None:
    said = recommendation(
        *tables({"a": {"top1": 0.9, "p": 1}, "b": {"top1": 0.8, "p": 0.2, "gflops": 0.1}}, "a", 8)
    )
    assert said[0].startswith("a: the most accurate")
    assert "b is 10 points behind a, which 8 groups do not tell from noise (p 0.2)." in said


def test_a_cost_of_nothing_is_no_divisor() -> None:
    free = {"top1": 0.9, "p": 1, "training_gflops": 0.0}
    said = recommendation(*tables({"zero_shot": free, "b": {"top1": 0.89, "p": 0.9}}, "zero_shot"))
    assert said[0].startswith("zero_shot: the most accurate")
    assert said[1] == (
        "b is within noise of the best, costs the same at inference and "
        "costs something to train, which zero_shot does not."
    )


def test_too_few_groups_recommend_nothing() -> None:
    said = recommendation(*tables({"a": {"top1": 0.9, "p": 1}, "b": {"top1": 0.8, "p": 1}}, "a", 5))
    assert said == [
        "5 groups are too few to recommend anything. a is the most accurate here, with 90.0 %; "
        "that it is better than another is not shown."
    ]


def test_a_row_that_stays_below_the_probe_where_it_was_tuned_is_named() -> None:
    scores = {
        "probe": (0.7, 0.6),
        "below": (0.4, 0.38),
        "once": (0.3, 0.61),
        "failed": (None, None),
    }
    rows = [
        {"method": name, "fold": fold, "fraction": 1.0, "val_top1": value}
        for name, values in scores.items()
        for fold, value in enumerate(values)
    ]
    (line,) = undertrained(pd.DataFrame(rows), "probe", "val_top1")
    assert line.startswith("below may be undertrained: where it was tuned, it stays below probe in")
    assert "(39.0 % against 65.0 % on average)" in line
    assert undertrained(pd.DataFrame(rows[2:]), "probe", "val_top1") == []


def test_a_training_that_falls_apart_is_named() -> None:
    rows = [
        ("aim", "trial", 1, 0, 1, "finished", 0.98),
        ("aim", "trial", 1, 0, 0, "stopped early", 0.2),
        ("aim", "final", 1, 0, 1, "finished", 0.44),
        ("aim", "final", 1, 1, 1, "finished", 0.9),
        ("aim", "final", 2, 0, 1, "finished", 0.1),  # nothing to compare it with
        ("aim", "final", 3, 0, 1, "failed", None),
    ]
    columns = ["method", "kind", "fold", "seed", "trial", "state", "train_top1"]
    (line,) = fell_apart(pd.DataFrame(rows, columns=columns).assign(fraction=1.0))
    assert line.startswith(
        "aim, fold 1, seed 0 fell apart: it ends with 44.0 % of its own training"
    )
    assert "the trial of the same settings with 98.0 %" in line
    quarter = pd.DataFrame(rows[2:3], columns=columns).assign(fraction=0.25)
    whole = pd.DataFrame(rows[:1], columns=columns).assign(fraction=1.0)
    (line,) = fell_apart(pd.concat([whole, quarter]))
    assert line.startswith("aim, fold 1 at 0.25, seed 0 fell apart")


def test_what_is_no_better_than_chance_and_the_order_of_frames_are_said() -> None:
    accuracy, versus, reference, _, groups = tables(
        {"a": {"top1": 0.9, "p": 1}, "b": {"top1": 0.2, "p": 0.01, "p_chance": 0.4}}, "a"
    )
    reference = pd.DataFrame(
        [
            {
                "method": "a",
                "reference": "b",
                "difference": 0.7,
                "p_adjusted": 0.01,
                "significant": True,
            }
        ]
    )
    orders = pd.DataFrame([{"method": "a", "shuffled_drop": 0.3, "p": 0.01}])
    said = recommendation(accuracy, versus, reference, orders, groups)
    assert "b is not shown to be better than chance." in said
    assert "a is 70 points above the reference b (p 0.01 by Holm)." in said
    assert said[-1] == "The order of frames matters: a loses 30 points without it (p 0.01)."


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
def test_nothing_beats_the_pareto_front_and_it_beats_the_rest(
    points: list[tuple[int, int]],
) -> None:
    table = pd.DataFrame(points, columns=["cost", "top1"])
    front = pareto_front(table, "cost")
    for i, (cost, top1) in enumerate(points):
        beaten = any(c <= cost and t >= top1 and (c, t) != (cost, top1) for c, t in points)
        equal = any(points[j] == (cost, top1) for j in front)
        assert equal == (not beaten), (i, front)


@pytest.mark.parametrize("missing", ["gflops", "top1"])
def test_a_row_without_numbers_is_on_no_front(missing: str) -> None:
    table = pd.DataFrame({"gflops": [1.0, 2.0], "top1": [0.5, 0.6]})
    table.loc[1, missing] = float("nan")
    assert pareto_front(table, "gflops") == [0]
