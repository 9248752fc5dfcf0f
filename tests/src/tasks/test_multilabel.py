"""Several labels a clip: losses by hand, metrics against scikit-learn, and thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score
from torchmetrics.functional.classification import multilabel_average_precision

from vidpipe.tasks.base import LossOptions, Predictions
from vidpipe.tasks.multilabel import MultiLabel
from vidpipe.tasks.scores import average_precision, mean_known

TASK = MultiLabel()
CLASSES = ["run", "jump", "wave", "sit"]


def predictions(clips: int = 60, seed: int = 0, **more: object) -> Predictions:
    """Every class but the last has a clip; some clips have none."""
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(clips, 4, generator=g) < torch.tensor([0.5, 0.3, 0.1, 0.0])).float()
    p = (torch.rand(clips, 4, generator=g) + labels / 3).div(1.5).mul(10).round().div(10)  # ties
    correct = torch.ones(clips, 1, dtype=torch.bool)
    return Predictions([f"clip{i}" for i in range(clips)], labels, p, correct, **more)  # type: ignore[arg-type]


def test_average_precision_is_scikit_learns_and_torchmetrics() -> None:
    found = predictions()
    p, y = found.probabilities.double().numpy(), found.labels.numpy()
    ours = average_precision(p, y)
    assert np.isnan(ours[3])
    theirs = [average_precision_score(y[:, c], p[:, c]) for c in range(3)]
    np.testing.assert_allclose(ours[:3], theirs, rtol=1e-12)
    other = multilabel_average_precision(found.probabilities, found.labels.long(), 4, average=None)
    np.testing.assert_allclose(ours[:3], other[:3], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2))
def test_weighted_average_precision_counts_a_clip_as_often(
    rows: list[tuple[int, bool, int]],
) -> None:
    scores, labels, weights = (np.array(x, float) for x in zip(*rows, strict=True))
    found = average_precision(scores[:, None], labels[:, None], weights)
    often = np.repeat(np.arange(len(rows)), weights.astype(int))
    if labels[often].sum() == 0:
        assert np.isnan(found[0])
        return
    repeated = average_precision(scores[often, None], labels[often, None])
    theirs = average_precision_score(labels, scores, sample_weight=weights)
    assert found[0] == pytest.approx(repeated[0], rel=1e-12) == pytest.approx(theirs, rel=1e-12)


def test_metrics_against_scikit_learn() -> None:
    thresholds = [0.45, 0.6, 0.3, 0.5]
    found = predictions(thresholds=thresholds, orders={})
    result = TASK.metrics(found, CLASSES, [("run", "jump")])
    p, y = found.probabilities, found.labels.int().numpy()
    said = (p.double() >= torch.tensor(thresholds, dtype=torch.float64)).int().numpy()
    expected = np.mean([average_precision_score(y[:, c], p[:, c]) for c in range(3)])
    assert result["map"] == pytest.approx(expected, rel=1e-12)
    assert result["micro_f1"] == pytest.approx(f1_score(y, said, average="micro"))
    there = (y.sum(0) + said.sum(0)) > 0  # torchmetrics leaves the others out
    each = f1_score(y, said, average=None, zero_division=0)
    assert result["macro_f1"] == pytest.approx(each[there].mean())
    assert result["subset_accuracy"] == (y == said).all(1).mean()
    assert result["map_low"] < result["map"] < result["map_high"]
    one = y[:, 0] != y[:, 1]
    own = (p[one, 0] > p[one, 1]).numpy() == (y[one, 0] == 1)
    assert result["in_pair_top1"] == own.mean()
    table = TASK.per_class_table(found, CLASSES)
    np.testing.assert_allclose(table.f1[:3], each[:3])
    assert table.threshold.tolist() == thresholds
    assert table.clips.tolist() == y.sum(0).tolist()


def test_the_metrics_are_these_numbers() -> None:
    """Golden, of scikit-learn 1.9.1's average_precision_score and f1_score on the same numbers."""
    result = TASK.metrics(predictions(thresholds=[0.45, 0.6, 0.3, 0.5]), CLASSES)
    assert {k: round(result[k], 6) for k in GOLDEN} == GOLDEN


GOLDEN = {"map": 0.498001, "micro_f1": 0.4125, "macro_f1": 0.355236, "subset_accuracy": 0.166667}


def test_without_thresholds_a_class_is_said_from_half_on() -> None:
    p = torch.tensor([[0.5, 0.2], [0.49, 0.9], [0.1, 0.2]])
    found = Predictions(["a", "b", "c"], torch.tensor([[1, 0], [0, 1], [0, 0]]), p, p > 0)
    table = TASK.predictions_table(found, ["run", "jump"])
    assert table.predicted.tolist() == table.label.tolist() == ["run", "jump", ""]
    assert TASK.metrics(found, ["run", "jump"])["subset_accuracy"] == 1


def test_the_use_of_time_is_what_map_loses() -> None:
    found = predictions()
    p = found.probabilities
    found.orders = {"in_order": p, "shuffled": 1 - p}
    result = TASK.metrics(found, CLASSES)
    expected = mean_known(average_precision(1 - p.double().numpy(), found.labels.numpy()))
    assert result["in_order_map"] == result["map"]
    assert result["shuffled_drop"] == pytest.approx(result["map"] - expected)
    assert result["shuffled_drop_low"] < result["shuffled_drop"] < result["shuffled_drop_high"]
    assert "shuffled_drop" in TASK.per_class_table(found, CLASSES)


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
    plain = F.binary_cross_entropy_with_logits(logits, y)
    torch.testing.assert_close(TASK.loss(logits, y), plain)
    torch.testing.assert_close(TASK.loss_sum(logits, y), plain * 6)
    weights = torch.tensor([1.0, 2.0, 5.0])
    weighted = F.binary_cross_entropy_with_logits(logits, y, pos_weight=weights)
    torch.testing.assert_close(TASK.loss(logits, y, LossOptions(weights=weights)), weighted)
    soft = y * 0.9 + 0.05
    smoothed = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(TASK.loss(logits, y, LossOptions(smoothing=0.1)), smoothed)
    p = torch.where(y == 1, logits.sigmoid(), 1 - logits.sigmoid())
    focal = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(TASK.loss(logits, y, LossOptions(focal_gamma=2.0)), focal)


def test_a_clip_is_right_where_its_likeliest_class_is_its_own_or_none_is_likely() -> None:
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [-1.0, -2.0], [0.1, -2.0]])
    y = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert TASK.correct(logits, y).tolist() == [True, False, True, False]
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [0, 0]], np.uint8)
    assert TASK.chance(labels, False) == 0.6
    blind = TASK.loss(torch.zeros(2, 3), torch.ones(2, 3)).item()
    assert TASK.guess(7) == math.log(2) == pytest.approx(blind)


def test_class_weights_are_absent_over_present() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], np.uint8)
    assert TASK.class_weights(labels, 3).tolist() == pytest.approx([1 / 3, 3, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12))
def test_no_other_threshold_has_a_higher_f1(rows: list[tuple[int, bool]]) -> None:
    p, y = torch.tensor([[a / 8] for a, _ in rows]), torch.tensor([[int(b)] for _, b in rows])
    (chosen,) = TASK.choose_thresholds(p, y)
    assert 0 <= chosen <= 1
    if not y.any():
        assert chosen == 0.5
        return

    def f1(threshold: float) -> float:
        return float(f1_score(y[:, 0], (p[:, 0] >= threshold).int(), zero_division=0))

    assert f1(chosen) == pytest.approx(max(f1(t) for t in [0.0, *np.arange(17) / 16, 1.1]))
