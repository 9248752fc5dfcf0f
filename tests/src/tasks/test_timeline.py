"""Windows merged into stretches; temporal mAP as ActivityNet's evaluator has it; frame accuracy."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project import PROJECT

from vidpipe.tasks.timeline import (
    Merging,
    Stretch,
    frame_accuracy,
    merge,
    temporal_map,
    timeline_metrics,
)

GOLDEN = PROJECT / "tests" / "golden" / "temporal_map.json"
"""Random stretches, and the average precisions of ActivityNet's published evaluator on them."""


def stretches(rows: dict[str, list[list]]) -> dict[str, list[Stretch]]:
    return {video: [Stretch(*row) for row in own] for video, own in rows.items()}


def test_temporal_map_is_the_published_evaluators() -> None:
    golden = json.loads(GOLDEN.read_text())
    found = temporal_map(stretches(golden["truth"]), stretches(golden["found"]))
    for tiou, of_class in found.items():
        for name, value in of_class.items():
            assert value == pytest.approx(golden["ap"][name][str(tiou)], abs=1e-12), (tiou, name)


def test_by_hand() -> None:
    truth = {"v": [Stretch(0, 10, "run"), Stretch(20, 30, "run")], "w": [Stretch(0, 5, "sit")]}
    found = {
        "v": [
            Stretch(0, 9, "run", 0.9),
            Stretch(1, 10, "run", 0.8),  # a second of the same: wrong
            Stretch(20, 26, "run", 0.7),  # IoU 0.6
            Stretch(0, 5, "sit", 0.5),  # there is none in this video
        ]
    }
    aps = temporal_map(truth, found, (0.5, 0.6, 0.7))
    assert aps[0.5] == {"run": pytest.approx((1 + 2 / 3) / 2), "sit": 0}
    assert aps[0.6] == aps[0.5]
    assert aps[0.7]["run"] == pytest.approx(0.5)


def test_frame_accuracy_counts_frames_with_all_labels_right() -> None:
    truth = {"v": [Stretch(0, 2, "run"), Stretch(1, 3, "jump")], "w": []}
    said = {"v": [Stretch(0, 1.5, "run"), Stretch(1, 3, "jump")], "w": [Stretch(0, 0.5, "run")]}
    # v: 30 of 40 frames at 10 a second are 35 right; w: 5 of 10 wrong
    frames = {"v": (40, 10.0), "w": (10, 10.0)}
    assert frame_accuracy(truth, said, frames) == (35 + 5) / 50
    perfect = timeline_metrics(truth, truth, frames)
    assert set(perfect.values()) == {1.0}


STARTS = [0.0, 1.0, 2.0, 3.0, 4.0]
ENDS = [2.0, 3.0, 4.0, 5.0, 6.0]


def test_one_class_at_a_time_and_a_background() -> None:
    p = np.array([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0, 0.9, 0.1]])
    found = merge(STARTS, ENDS, p, ["run", "jump", "still"], background="still")
    assert found == [Stretch(0.0, 2.5, "run", 0.78), Stretch(3.5, 6.0, "jump", 0.82)]
    sure = merge(STARTS, ENDS, p, ["run", "jump", "still"], merging=Merging(threshold=0.65))
    assert [(s.label, s.start_s, s.end_s) for s in sure] == [
        ("run", 0.0, 1.5),
        ("still", 2.5, 3.5),
        ("jump", 3.5, 6.0),
    ]
    assert merge(STARTS, ENDS, p, ["run", "jump", "still"], merging=Merging(min_length_s=3)) == []


def test_several_labels_overlap_and_none_is_nothing() -> None:
    p = np.array([[0.9, 0.6], [0.9, 0.2], [0.2, 0.2], [0.4, 0.9], [0.1, 0.9]])
    found = merge(STARTS, ENDS, p, ["run", "jump"], thresholds=[0.3, 0.5])
    assert [(s.label, s.start_s, s.end_s) for s in found] == [
        ("jump", 0.0, 1.5),
        ("run", 0.0, 2.5),
        ("run", 3.5, 4.5),
        ("jump", 3.5, 6.0),
    ]


def test_smoothing_bridges_one_bad_window() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.9, 0.1], [0.9, 0.1]])
    assert len(merge(STARTS, ENDS, p, ["run", "jump"])) == 3
    (one,) = merge(STARTS, ENDS, p, ["run", "jump"], merging=Merging(smoothing_s=2.0))
    assert (one.start_s, one.end_s, one.label) == (0.0, 6.0, "run")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.1, 2), min_size=1, max_size=12),
    st.floats(0.5, 3),
    st.integers(0, 2**31),
)
def test_without_a_background_the_stretches_cover_the_video(
    steps: list[float], window: float, seed: int
) -> None:
    starts = np.concatenate([[0.0], np.cumsum(steps[:-1])])
    ends = starts + window
    p = np.random.default_rng(seed).dirichlet([1, 1, 1], len(starts))
    found = merge(starts, ends, p, ["a", "b", "c"])
    assert found[0].start_s == 0
    assert found[-1].end_s == pytest.approx(ends[-1])
    for one, other in pairwise(found):
        assert one.end_s == other.start_s
        assert one.label != other.label
    assert all(0 <= s.score <= 1 for s in found)
