"""Class weights: their mean, the loss by hand, and the same gradient however a batch is shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from moving_clips import Moving
from trainings import assert_near, first_gradients, make, trainer

from vidpipe.tasks.base import LossOptions
from vidpipe.tasks.registry import SINGLE_LABEL

LABELS = np.array([0, 0, 0, 0, 0, 0, 2, 2])


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, smoothing: float, weights: torch.Tensor | None
) -> torch.Tensor:
    return SINGLE_LABEL.loss(logits, target, LossOptions(smoothing, weights))


def test_weights_are_the_inverse_of_the_clips_and_one_in_the_mean() -> None:
    weights = SINGLE_LABEL.class_weights(LABELS, 4)
    assert weights.tolist() == pytest.approx([8 / 12, 0, 2, 0])
    assert weights[torch.from_numpy(LABELS)].mean() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_mean_over_the_clips(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, target, weights = (
        torch.randn(8, 3),
        torch.from_numpy(LABELS),
        SINGLE_LABEL.class_weights(LABELS, 3),
    )
    each = [
        F.cross_entropy(logits[i : i + 1], target[i : i + 1], label_smoothing=smoothing)
        * weights[target[i]]
        for i in range(8)
    ]
    found = cross_entropy(logits, target, smoothing, weights)
    torch.testing.assert_close(found, torch.stack(each).mean())
    hard = F.one_hot(target, 3).float()  # as shares
    torch.testing.assert_close(cross_entropy(logits, hard, smoothing, weights), found)
    plain = F.cross_entropy(logits, target, label_smoothing=smoothing)
    assert cross_entropy(logits, target, smoothing, None) == plain
    assert cross_entropy(logits, target, smoothing, torch.ones(3)) == pytest.approx(plain.item())
    mixed = 0.7 * hard + 0.3 * hard.flip(0)
    by_hand = (F.cross_entropy(logits, mixed, reduction="none") * (mixed @ weights)).mean()
    torch.testing.assert_close(cross_entropy(logits, mixed, 0.0, weights), by_hand)


def test_the_gradient_does_not_depend_on_the_parts_of_a_batch() -> None:
    labels = np.arange(16) % 8 // 7
    options = {"balance": "weights", "labels": labels, "size": 16, "batch_size": 16}
    whole = first_gradients(make(), **options)
    assert_near(first_gradients(make(), **options, accumulate=8), whole, 1e-6)
    plain = first_gradients(make(), size=16, batch_size=16)
    assert any(not torch.allclose(plain[name], whole[name], rtol=1e-2) for name in whole)


@pytest.mark.parametrize("balance", ["none", "sample", "weights"])
def test_a_rare_class_is_expected_as_often_as_balance_says(balance: str) -> None:
    """Two clips in thirty-four move right. What a model learns first is how often each class comes."""
    data = torch.utils.data.Subset(Moving(64, False), [*range(0, 64, 2), 1, 33])
    labels = np.array([i % 2 for i in data.indices])
    run = trainer(make(), epochs=3, balance=balance, labels=labels, size=len(labels))
    run.loader.loader = torch.utils.data.DataLoader(RareRight(data), batch_sampler=run.batches)
    run.run()
    with torch.no_grad():
        views = torch.stack([Moving(8, True)[i]["video"][0] for i in range(8)])
        logits = run.model.eval()(views.float().div(255).sub(0.5).div(0.5).transpose(1, 2))
    expected = logits.softmax(1)[:, 1].mean().item()
    assert (expected < 0.2) if balance == "none" else (0.35 < expected < 0.65)


class RareRight(torch.utils.data.Dataset):
    def __init__(self, data: torch.utils.data.Subset) -> None:
        self.data, self.clips = data, data.dataset.clips

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        i = key[1]
        return {**self.data.dataset[0, self.data.indices[i]], "index": i, "asked": i}
