"""One class a clip: softmax, cross-entropy, top-1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.tasks.base import PLAIN, LossOptions, Predictions, Task
from vidpipe.tasks.scores import (
    ECE_BINS,
    Array,
    Statistic,
    interval,
    mean_class_accuracy,
    reliability,
)

if TYPE_CHECKING:
    import pandas as pd


class SingleLabel(Task):
    """Targets are class indices (B,), or shares of classes (B, C) where pairs are mixed."""

    name = "single_label"
    score, score_name = "top1", "top-1"
    output = "logits"

    def class_weights(self, labels: NDArray[np.int64], num_classes: int) -> Tensor:
        """N / (C n) of a class with n of the N clips, C classes having any; else 0.

        The mean over the clips is 1, so that a rate means what it does without weights.
        """
        counts = np.bincount(labels, minlength=num_classes)
        present = np.count_nonzero(counts)
        weights = np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0.0)
        return torch.from_numpy(weights).float()

    def loss(self, logits: Tensor, target: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Cross-entropy, each clip's times its class's weight.

        torch's own `weight` divides by the sum of the weights at hand, so that the loss would depend on
        how a batch is shared out among workers and parts.
        """
        smoothing, weights = options.smoothing, options.weights
        if weights is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        each = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        own = weights[target] if target.ndim == 1 else target @ weights
        return (each * own).mean()

    def loss_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="sum")

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.argmax(1) == target

    def chance(self, labels: NDArray[np.int64], balanced: bool) -> float:
        counts = np.bincount(labels)
        return float(1 / np.count_nonzero(counts) if balanced else counts.max() / counts.sum())

    def guess(self, num_classes: int) -> float:
        return math.log(max(2, num_classes))

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def score_of(self, outputs: Tensor, labels: Tensor) -> float:
        return float(self.correct(outputs, labels).double().mean())

    def metrics(
        self,
        predictions: Predictions,
        classes: Sequence[str],
        reversed_pairs: Sequence[Sequence[str]] = (),
    ) -> dict[str, float]:
        """Fractions. `NAME_low` and `NAME_high` bound NAME with 95 % confidence (`interval`).

        top1, top5, mean_class_accuracy; ece: expected calibration error (15 bins, l1); in_pair_top1
        where pairs are given: the share of clips, of classes in a pair, that rank their own class above
        its reverse. Where the use of time was measured: top1 of the middle view with its frames
        in_order, reversed, shuffled and frozen, and what each loses (`NAME_drop`).
        """
        from torchmetrics.functional.classification import multiclass_calibration_error

        p, y = predictions.probabilities, predictions.labels
        labels = y.numpy()
        result: dict[str, float] = {}

        def add(name: str, statistic: Statistic) -> None:
            result[name] = statistic(np.arange(len(labels)))
            result[f"{name}_low"], result[f"{name}_high"] = interval(statistic, len(labels))

        hits = correct(p, y)
        add("top1", lambda i: float(hits[i].mean()))
        hits5 = correct(p, y, 5)
        add("top5", lambda i: float(hits5[i].mean()))
        add("mean_class_accuracy", lambda i: mean_class_accuracy(hits[i], labels[i]))
        result["ece"] = float(multiclass_calibration_error(p, y, len(classes), n_bins=ECE_BINS))
        result["clips"] = float(len(y))
        pairs = _pairs(classes, reversed_pairs)
        if paired := [i for i, c in enumerate(labels.tolist()) if c in pairs]:
            own = _above_reverse(p[paired], labels[paired], pairs)
            result["in_pair_top1"] = float(own.mean())
            low, high = interval(lambda i: float(own[i].mean()), len(own))
            result["in_pair_top1_low"], result["in_pair_top1_high"] = low, high
        in_order = None
        for name, reordered in predictions.orders.items():
            changed = correct(reordered, y)
            result[f"{name}_top1"] = float(changed.mean())
            if in_order is None:
                in_order = changed
            else:
                lost = in_order - changed
                add(f"{name}_drop", lambda i, lost=lost: float(lost[i].mean()))  # type: ignore[misc]
            if paired:
                own = _above_reverse(reordered[paired], labels[paired], pairs)
                result[f"{name}_in_pair_top1"] = float(own.mean())
        return result

    def confusion_matrix(self, predictions: Predictions, classes: Sequence[str]) -> Tensor:
        """(C, C) counts: row is the label, column the prediction."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        matrix: Tensor = multiclass_confusion_matrix(
            predictions.probabilities.argmax(1), predictions.labels, len(classes)
        )
        return matrix

    def per_class_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """Columns class, clips, top1, shuffled_drop (where measured: what the class loses without the
        order of its frames), most_confused_with (empty where nothing was)."""
        confusion = self.confusion_matrix(predictions, classes)
        labels = predictions.labels
        orders = {name: correct(p, labels) for name, p in predictions.orders.items()}
        rows = []
        for index, name in enumerate(classes):
            counts = confusion[index].clone()
            total, right = int(counts.sum()), int(counts[index])
            counts[index] = 0
            worst = classes[int(counts.argmax())] if int(counts.sum()) else ""
            row = {"class": name, "clips": total, "top1": right / total if total else None}
            if orders:
                own = (labels == index).numpy()
                lost = orders["in_order"][own] - orders["shuffled"][own]
                row["shuffled_drop"] = float(lost.mean()) if total else None
            rows.append({**row, "most_confused_with": worst})
        import pandas as pd

        return pd.DataFrame(rows)

    def predictions_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a clip: id, label, predicted, top5 (names, likeliest first), probabilities (in the
        order of `classes`, (C,) fp32), and for each order of time the class predicted then."""
        p = predictions.probabilities
        names = np.array(classes, dtype=object)
        top5 = p.topk(min(5, p.shape[1]), dim=1).indices.numpy()
        table = {
            "id": predictions.ids,
            "label": names[predictions.labels.numpy()],
            "predicted": names[top5[:, 0]],
            "top5": [list(row) for row in names[top5]],
            "probabilities": list(p.float().numpy()),
        }
        for name, reordered in predictions.orders.items():
            table[f"{name}_predicted"] = names[reordered.argmax(1).numpy()]
        import pandas as pd

        return pd.DataFrame(table)

    def calibration_table(self, predictions: Predictions) -> pd.DataFrame:
        confidence, predicted = predictions.probabilities.max(1)
        hits = (predicted == predictions.labels).double().numpy()
        return reliability(confidence.double().numpy(), hits)


def correct(probabilities: Tensor, labels: Tensor, top_k: int = 1) -> Array:
    """(N,) 1 where the label is among the `top_k` likeliest classes, else 0."""
    top = probabilities.topk(min(top_k, probabilities.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).double().numpy()


def _pairs(classes: Sequence[str], pairs: Sequence[Sequence[str]]) -> dict[int, int]:
    index = {name: i for i, name in enumerate(classes)}
    both = [(index[a], index[b]) for a, b in pairs]
    return {**dict(both), **{b: a for a, b in both}}


def _above_reverse(p: Tensor, labels: NDArray[np.int64], pairs: Mapping[int, int]) -> Array:
    rows = np.arange(len(labels))
    reverse = [pairs[c] for c in labels.tolist()]
    table = p.double().numpy()
    return (table[rows, labels] > table[rows, reverse]).astype(np.float64)
