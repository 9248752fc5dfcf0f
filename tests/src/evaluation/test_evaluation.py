"""Evaluation: what is averaged, what is counted, what time is worth, and how runs are compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_store import UNIFORM, small_store
from tiny import randomise, tiny_vit

from vidpipe.data.config import TransformConfig
from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import (
    Evaluated,
    difference,
    mean_of_splits,
    per_class_difference,
    require_same_classes,
)
from vidpipe.evaluation.evaluate import ORDERS, Evaluator, batches, predict, shuffled
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.tasks.base import Predictions
from vidpipe.tasks.registry import SINGLE_LABEL
from vidpipe.tasks.scores import interval

HALF = ((0.5,) * 3, (0.5,) * 3)


def evaluator(tmp_path: Path, method: str = "aim", crops: int = 3, **options: object) -> Evaluator:
    folder = tmp_path / "store"
    if not folder.exists():
        folder.mkdir()
        small_store(folder, 10)
    from vidpipe.video.store import FrameStore

    model = build_method(method, tiny_vit(), 2, UNIFORM.num_frames, METHODS[method].Config())
    randomise(model)
    clips = Clips(FrameStore(folder), "train", ["a", "b"])
    views = ViewSet(clips, UNIFORM, TransformConfig(size=32), 1, crops)
    return Evaluator(model.eval(), views, HALF, **options)  # type: ignore[arg-type]


# -- prediction ---------------------------------------------------------------------------------


def test_views_are_averaged_as_softmax_or_as_logits(tmp_path: Path) -> None:
    found = predict(evaluator(tmp_path, batch_size=3))
    logits = []
    one = evaluator(tmp_path)
    with torch.no_grad():
        for i in range(len(one.views)):
            video = one.views[i]["video"]
            logits.append(torch.stack([one._logits([view[None]])[0] for view in video]))
    each = torch.stack(logits)
    torch.testing.assert_close(found.probabilities, each.softmax(-1).mean(1))
    assert torch.equal(found.view_correct, each.argmax(-1) == found.labels[:, None])
    other = predict(evaluator(tmp_path, average="logits", batch_size=3))
    torch.testing.assert_close(other.probabilities, each.mean(1).softmax(-1))
    assert not torch.allclose(found.probabilities, other.probabilities)
    # The middle view of three crops is the centre crop.
    torch.testing.assert_close(found.orders["in_order"], each[:, 1].softmax(-1))


@pytest.mark.parametrize("method", ["linear_probe", "aim", "st_adapter", "zeroi2v"])
def test_each_order_is_what_its_name_says(tmp_path: Path, method: str) -> None:
    one = evaluator(tmp_path, method, batch_size=4)
    found = predict(one)
    assert tuple(found.orders) == ORDERS
    for i in (0, 5):
        video = one.views[i]["video"][1]
        orders = {
            "in_order": video,
            "reversed": video.flip(0),
            "shuffled": video[shuffled(4, i)],
            "frozen": video[2:3].expand(4, -1, -1, -1),
        }
        with torch.no_grad():
            for name, reordered in orders.items():
                expected = one._logits([reordered[None]])[0].softmax(-1)
                torch.testing.assert_close(found.orders[name][i], expected)
    blind = one.model.order_blind
    assert torch.allclose(found.orders["reversed"], found.orders["in_order"], atol=1e-5) == blind


def test_batches_hold_every_clip_once_whatever_their_order(tmp_path: Path) -> None:
    assert [len(b) for b in batches(7, 3)] == [3, 3, 1]
    one = evaluator(tmp_path, batch_size=3)
    whole = predict(one)
    other = predict(one, apply=lambda todo: [one(b) for b in reversed(todo)])
    assert whole.ids == [f"c{i}" for i in range(7)]
    assert torch.equal(whole.probabilities, other.probabilities)
    assert torch.equal(whole.labels, other.labels)
    for wrong in (lambda todo: [one(b) for b in todo[:-1]], lambda todo: [one(todo[0])] * 3):
        with pytest.raises(AssertionError):
            predict(one, apply=wrong)


def test_without_use_of_time_nothing_more_is_computed(tmp_path: Path) -> None:
    found = predict(evaluator(tmp_path, use_of_time=False, batch_size=4))
    assert found.orders == {}
    names = SINGLE_LABEL.metrics(found, ["a", "b"])
    assert not any("shuffled" in name for name in names)


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_a_shuffle_is_a_permutation_that_moves_something(frames: int, seed: int) -> None:
    order = shuffled(frames, seed)
    assert sorted(order.tolist()) == list(range(frames))
    assert (order.tolist() != list(range(frames))) == (frames > 1)
    assert torch.equal(order, shuffled(frames, seed))


# -- numbers ------------------------------------------------------------------------------------


def predictions(
    p: list[list[float]], labels: list[int], **orders: list[list[float]]
) -> Predictions:
    table = torch.tensor(p)
    ids = [f"v{i}" for i in range(len(labels))]
    found = {name: torch.tensor(values) for name, values in orders.items()}
    return Predictions(ids, torch.tensor(labels), table, table.argmax(1)[:, None], found)


P = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]
LABELS = [0, 1, 1, 2, 2]


def test_golden_numbers() -> None:
    found = SINGLE_LABEL.metrics(predictions(P, LABELS), ["a", "b", "c"], [("a", "b")])
    assert found["top1"] == pytest.approx(3 / 5)
    assert found["top5"] == 1
    assert found["mean_class_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    # Each of five clips is alone in its bin but two of confidence 0.7: |0.7 - 1|.
    ece = (abs(0.6 - 1) + 2 * abs(0.7 - 1) + abs(0.5 - 0) + abs(0.8 - 0)) / 5
    assert found["ece"] == pytest.approx(ece, abs=1e-6)
    assert found["in_pair_top1"] == pytest.approx(2 / 3)
    assert found["clips"] == 5


def test_a_class_without_a_clip_has_no_part_in_the_mean() -> None:
    found = SINGLE_LABEL.metrics(predictions(P[:2], LABELS[:2]), ["a", "b", "c"])
    assert found["mean_class_accuracy"] == 1
    table = SINGLE_LABEL.per_class_table(predictions(P[:2], LABELS[:2]), ["a", "b", "c"])
    assert table.top1.isna().tolist() == [False, False, True]


def test_what_time_is_worth() -> None:
    flipped = [row[::-1] for row in P]
    found = SINGLE_LABEL.metrics(
        predictions(P, LABELS, in_order=P, shuffled=flipped), ["a", "b", "c"]
    )
    assert found["in_order_top1"] == pytest.approx(0.6)
    assert found["shuffled_top1"] == pytest.approx(0.4)  # v1 and v4
    assert found["shuffled_drop"] == pytest.approx(0.2)
    assert found["shuffled_drop_low"] <= 0.2 <= found["shuffled_drop_high"]
    assert "in_order_drop" not in found


@pytest.mark.parametrize(("n", "share"), [(50, 0.5), (200, 0.9)])
def test_the_interval_is_that_of_a_share(n: int, share: float) -> None:
    """Against the normal approximation, which is good here."""
    hits = np.zeros(n)
    hits[: round(n * share)] = 1
    low, high = interval(lambda i: float(hits[i].mean()), n)
    half = 1.96 * math.sqrt(share * (1 - share) / n)
    assert low == pytest.approx(share - half, abs=0.02)
    assert high == pytest.approx(share + half, abs=0.02)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        hits = (rng.random(80) < 0.7).astype(float)
        low, high = interval(lambda i, h=hits: float(h[i].mean()), 80, 200)  # type: ignore[misc]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 200


def test_calibration_bins_hold_every_clip() -> None:
    table = SINGLE_LABEL.calibration_table(predictions(P, LABELS))
    assert table.clips.sum() == 5
    assert table.accuracy.between(0, 1).all()


def test_the_table_of_predictions_survives_a_file(tmp_path: Path) -> None:
    p = torch.rand(4, 7).softmax(-1).tolist()
    names = [f"class {i}" for i in range(7)]
    SINGLE_LABEL.predictions_table(predictions(p, [0, 1, 2, 6], in_order=p), names).to_parquet(
        tmp_path / "p"
    )
    table = pd.read_parquet(tmp_path / "p")
    assert list(table.columns) == [
        *("id", "label", "predicted", "top5", "probabilities", "in_order_predicted")
    ]
    for row, own in zip(table.itertuples(), p, strict=True):
        np.testing.assert_allclose(row.probabilities, own, rtol=1e-6)
        best = np.argsort(own)[::-1]
        assert list(row.top5) == [names[i] for i in best[:5]]
        assert row.predicted == names[best[0]]


# -- two runs -----------------------------------------------------------------------------------


def run(name: str, hits: list[int], labels: str = "aabb", start: int = 0) -> Evaluated:
    other = {"a": "b", "b": "a"}
    rows = [
        {
            "id": f"v{i + start}",
            "label": label,
            "predicted": label if hit else other[label],
            "top5": ["a", "b"],
        }
        for i, (hit, label) in enumerate(zip(hits, labels, strict=True))
    ]
    return Evaluated(name, ("a", "b"), pd.DataFrame(rows))


def test_the_difference_of_two_runs() -> None:
    a, b = run("one", [1, 0, 0, 0]), run("two", [1, 1, 1, 0])
    table = difference(a, b).set_index("metric")
    assert table.difference.top1 == pytest.approx(0.5)
    assert table.p.top1 == pytest.approx(0.5)  # two clips, both won: 2 * 0.5^2
    assert table.difference.top5 == 0
    assert table.p.top5 == 1
    assert table.low.top1 <= 0.5 <= table.high.top1
    classes = per_class_difference(a, b)
    assert classes["class"].tolist() == ["a", "b"]
    assert classes.difference.tolist() == [0.5, 0.5]


def test_rows_are_paired_by_clip_not_by_place() -> None:
    a, b = run("one", [1, 0, 1, 0]), run("two", [1, 0, 1, 0])
    mixed = Evaluated("two", b.classes, b.table.iloc[::-1].reset_index(drop=True))
    table = difference(a, mixed).set_index("metric")
    assert table.difference.top1 == 0
    assert (table.low.top1, table.high.top1) == (0, 0)


def test_runs_that_cannot_be_compared_are_refused_by_both_names() -> None:
    a = run("one", [1, 0, 1, 0])
    with pytest.raises(VidpipeError, match="one was evaluated on 4 clips and two on 3; 'v3' is"):
        difference(a, run("two", [1, 0, 1], "aab"))
    with pytest.raises(VidpipeError, match="v1: one has label 'a', two 'b'"):
        difference(a, run("two", [1, 0, 1, 0], "abbb"))
    other = Evaluated("two", ("a", "c"), a.table)
    with pytest.raises(VidpipeError, match=r"one has 2 classes and two has 2; .* 'b' and 'c' at 1"):
        difference(a, other)
    with pytest.raises(VidpipeError, match=r"2 classes and y has 3; .* None and 'c' at 2"):
        require_same_classes("x", ["a", "b"], "y", ["a", "b", "c"])


def test_the_mean_of_splits() -> None:
    runs = [run(f"s{i}", [1, 1, 1, i % 2], start=10 * i) for i in range(3)]
    table = mean_of_splits(runs).set_index("run")
    assert table.top1["mean"] == pytest.approx((0.75 + 1 + 0.75) / 3)
    with pytest.raises(VidpipeError, match="s0 and again were evaluated on the same clips"):
        mean_of_splits([runs[0], Evaluated("again", ("a", "b"), runs[0].table)])
