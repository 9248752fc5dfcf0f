"""Two models by their task's own score: its value is the evaluation's, and groups are drawn whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import Evaluated, difference
from vidpipe.evaluation.own_score import RankedHits, own_difference
from vidpipe.study.statistics import bounds
from vidpipe.tasks.timeline import Stretch, timeline_metrics

CLASSES = ("a", "b")


def clips(right: list[bool], **columns: Any) -> pd.DataFrame:
    predicted = ["a" if each else "b" for each in right]
    return pd.DataFrame(
        {
            "id": [f"c{i}" for i in range(len(right))],
            "label": "a",
            "predicted": predicted,
            "top5": [["a", "b"]] * len(right),
            "probabilities": [[0.9, 0.1] if p == "a" else [0.1, 0.9] for p in predicted],
            **columns,
        }
    )


def run(table: pd.DataFrame, name: str = "one", **more: Any) -> Evaluated:
    return Evaluated(name, CLASSES, table, **more)


def test_clips_of_a_group_are_drawn_together() -> None:
    """Forty clips of four people are four samples: the interval is that much wider."""
    old, new = [True, False] * 20, [True] * 24 + [True, False] * 8
    alone = own_difference(run(clips(old)), run(clips(new)))
    assert (alone.name, alone.samples, alone.groups) == ("top-1", "40 clips", 40)
    assert (alone.a, alone.b) == (0.5, 0.8)
    people = {"group": [f"p{i // 10}" for i in range(40)]}
    drawn = own_difference(run(clips(old, **people)), run(clips(new, **people)))
    assert (drawn.a, drawn.b, drawn.groups) == (0.5, 0.8, 4)
    sums = {5 * i + 2 * j for i in range(5) for j in range(5 - i)}  # they gain 5, 5, 2 and 0 clips
    assert set((40 * drawn.values).round(9)) <= sums
    widths = [np.ptp(bounds(each.values, each.groups)) for each in (alone, drawn)]
    assert widths[1] > 1.5 * widths[0]
    files = clips(old, id=[f"f{i // 8}@{i % 8}" for i in range(40)])
    assert own_difference(run(files), run(files)).groups == 5


def test_several_labels_have_the_map_of_compare() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "a|b", ""], dtype=object)[rng.integers(0, 4, 30)]
    tables = [
        clips([True] * 30, label=labels, probabilities=list(rng.random((30, 2)))) for _ in range(2)
    ]
    one, two = (run(table, task="multilabel") for table in tables)
    found, expected = own_difference(one, two), difference(one, two).iloc[0]
    assert found.name == "mAP"
    assert (found.a, found.b) == pytest.approx((expected.a, expected.b))
    assert np.quantile(found.values, [0.025, 0.975]) == pytest.approx([expected.low, expected.high])


def stretches(rng: np.random.Generator, files: int) -> dict[str, list[Stretch]]:
    found = {}
    for number in range(files):
        starts = np.sort(rng.uniform(0, 8, 3))
        found[f"f{number}"] = [
            Stretch(s, s + rng.uniform(0.5, 2), "ab"[rng.integers(2)], float(rng.random()))
            for s in starts
        ]
    return found


def timeline(truth: Any, found: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"file": file, **stretch._asdict(), "truth": real}
        for real, by_file in ((True, truth), (False, found))
        for file, own in by_file.items()
        for stretch in own
    )


def test_stretches_have_the_temporal_map_of_the_evaluation() -> None:
    rng = np.random.default_rng(1)
    truth = stretches(rng, 6)
    table = clips([True] * 12, id=[f"f{i // 2}@{i}" for i in range(12)])

    def moved(by: float) -> dict[str, list[Stretch]]:
        return {
            file: [s._replace(start_s=s.start_s + rng.uniform(0, by)) for s in own]
            for file, own in truth.items()
        }

    near, far = moved(0.3), moved(1.5)
    one, two = (run(table, timeline=timeline(truth, found)) for found in (far, near))
    found = own_difference(one, two)
    assert (found.name, found.samples, found.groups) == ("temporal mAP", "6 files", 6)
    frames = dict.fromkeys(truth, (100, 10.0))
    for value, own in ((found.a, far), (found.b, near)):
        assert value == pytest.approx(timeline_metrics(truth, own, frames)["temporal_map"])
    assert found.b > found.a + 0.1
    assert bounds(found.values, found.groups)[0] > 0
    other = run(table, timeline=timeline(stretches(rng, 6), near))
    with pytest.raises(VidpipeError, match="files with other spans"):
        own_difference(one, other)


def test_a_group_that_counts_twice_is_there_twice() -> None:
    rng = np.random.default_rng(2)
    right, group = rng.integers(0, 2, 30).astype(float), rng.integers(0, 3, 30)
    positives = np.array([12.0, 9.0, 14.0])
    weights = np.array([2, 0, 1])
    times = weights[group]
    once = RankedHits(np.repeat(right, times), np.repeat(group, times), weights * positives)
    twice = RankedHits(right, group, positives)
    assert twice(weights.astype(float)) == pytest.approx(once(np.ones(3)))
    assert np.isnan(RankedHits(right, group, np.zeros(3))(np.ones(3)))
    assert RankedHits(np.empty(0), np.empty(0, np.int64), positives)(np.ones(3)) == 0


def test_what_was_evaluated_on_other_data_is_refused() -> None:
    one = run(clips([True] * 4))
    with pytest.raises(VidpipeError, match=r"for data\.task single_label and .* for multilabel"):
        own_difference(one, run(clips([True] * 4), "two", task="multilabel"))
    with pytest.raises(VidpipeError, match="'c3' is only in one"):
        own_difference(one, run(clips([True] * 3), "two"))
