"""Class weights in the loss, for `train.balance: weights`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def class_weights(labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """(num_classes,): N / (C n) of a class with n of the N clips, C classes having any; else 0.

    The mean over the clips is 1, so that a rate means what it does without weights.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = np.count_nonzero(counts)
    weights = np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights).float()


def cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float, weights: Tensor | None
) -> Tensor:
    """Mean over the clips of the loss, each times its class's weight. `target`: (B,) classes or (B, C)
    shares.

    torch's own `weight` divides by the sum of the weights at hand, so that the loss would depend on how
    a batch is shared out among workers and parts.
    """
    if weights is None:
        return F.cross_entropy(logits, target, label_smoothing=smoothing)
    each = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    own = weights[target] if target.ndim == 1 else target @ weights
    return (each * own).mean()
