"""Any number of classes a clip, or none: sigmoid, binary cross-entropy, mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.data.labels import join_labels
from vidpipe.errors import VidpipeError
from vidpipe.tasks.base import PLAIN, LossOptions, Predictions
from vidpipe.tasks.independent import IndependentClasses
from vidpipe.tasks.scores import (
    ECE_BINS,
    Array,
    RankedScores,
    Statistic,
    average_precision,
    interval,
    mean_known,
    reliability,
)

if TYPE_CHECKING:
    import pandas as pd

HALF = 0.5
"""The threshold of a class where no training clip has said another."""


def half(classes: int) -> list[float]:
    """Thresholds of a model that has none of its own."""
    return [HALF] * classes


class MultiLabel(IndependentClasses):
    """Targets are (B, C), 1 where a clip has the class; shares where pairs are mixed."""

    name = "multilabel"
    score, score_name = "map", "mAP"
    has_thresholds = True

    def loss(self, logits: Tensor, target: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Mean over classes and clips of `each`."""
        return self.each(logits, target, options).mean()

    def loss_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.each(logits, target).mean(1).sum()

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """Whether the likeliest class is one of the clip's (hit@1); of a clip without any, whether no
        class is more likely than not."""
        best, top = logits.max(1)
        hit = target.gather(1, top[:, None])[:, 0] >= HALF
        return torch.where((target >= HALF).any(1), hit, best < 0)

    def score_of(self, outputs: Tensor, labels: Tensor) -> float:
        return mean_known(average_precision(outputs.double().numpy(), labels.double().numpy()))

    def choose_thresholds(self, probabilities: Tensor, labels: Tensor) -> list[float]:
        """For each class the probability from which on to say it: that of the highest F1 on these clips.

        It lies half way between the last clip that it takes and the first that it leaves. `HALF` for a
        class that no clip has.

        Example:
            >>> p, y = torch.tensor([[0.9], [0.4], [0.2]]), torch.tensor([[1], [1], [0]])
            >>> MultiLabel().choose_thresholds(p, y)
            [0.3]
        """
        found = []
        for p, y in zip(probabilities.double().T.numpy(), labels.double().T.numpy(), strict=True):
            if y.sum() == 0:
                found.append(HALF)
                continue
            order = np.argsort(-p, kind="stable")
            p, y = p[order], y[order]
            f1 = 2 * np.cumsum(y) / (np.arange(1, len(y) + 1) + y.sum())
            f1[:-1][p[1:] == p[:-1]] = -1  # equal probabilities cannot be told apart
            last = int(f1.argmax())
            below = p[last + 1] if last + 1 < len(p) else 0.0
            found.append(round(float(p[last] + below) / 2, 6))
        return found

    def metrics(
        self,
        predictions: Predictions,
        classes: Sequence[str],
        reversed_pairs: Sequence[Sequence[str]] = (),
    ) -> dict[str, float]:
        """Fractions. `NAME_low` and `NAME_high` bound NAME with 95 % confidence (`interval`).

        map: mean over the classes that a clip has of average precision. At the model's thresholds:
        micro_f1 and macro_f1 (torchmetrics; without classes that are neither said nor there), and
        subset_accuracy, the share of clips whose classes are all right. top1: the likeliest class is
        one of the clip's. ece: expected calibration error (15 bins, l1) of all N C probabilities.
        in_pair_top1: of the clips that have one class of a pair, whether it is ranked above the other.
        Where the use of time was measured: map of the middle view with its frames in_order, reversed,
        shuffled and frozen, and what each loses (`NAME_drop`).
        """
        from torchmetrics.functional.classification import (
            binary_calibration_error,
            multilabel_f1_score,
        )

        p, y = predictions.probabilities.double(), predictions.labels.long()
        clips, labels = len(y), y.double().numpy()
        if labels.sum() == 0:
            raise VidpipeError(
                f"evaluate: none of {clips} clips has any of the {len(classes)} classes, so there is no "
                "average precision; check the labels of split val"
            )
        result: dict[str, float] = {}

        def count(i: NDArray[np.int64]) -> Array:
            return np.bincount(i, minlength=clips).astype(np.float64)

        ranked = RankedScores(p.numpy(), labels)
        result["map"] = mean_known(ranked())
        low, high = interval(lambda i: mean_known(ranked(count(i))), clips)
        result["map_low"], result["map_high"] = low, high
        said = self._said(predictions)
        for average in ("micro", "macro"):
            score = multilabel_f1_score(said.int(), y, len(classes), average=average)  # type: ignore[arg-type]
            result[f"{average}_f1"] = float(score)
        right = (said == y.bool()).all(1).double().numpy()
        hits = self.correct(p.logit(), y).double().numpy()
        for name, values in (("subset_accuracy", right), ("top1", hits)):
            result[name] = float(values.mean())
            low, high = interval(lambda i, own=values: float(own[i].mean()), clips)  # type: ignore[misc]
            result[f"{name}_low"], result[f"{name}_high"] = low, high
        result["ece"] = float(binary_calibration_error(p.flatten(), y.flatten(), n_bins=ECE_BINS))
        result["clips"] = float(clips)
        if len(own := _above_reverse(p, y, classes, reversed_pairs)):
            result["in_pair_top1"] = float(own.mean())
            low, high = interval(lambda i: float(own[i].mean()), len(own))
            result["in_pair_top1_low"], result["in_pair_top1_high"] = low, high
        in_order: RankedScores | None = None
        for name, reordered in predictions.orders.items():
            changed = RankedScores(reordered.double().numpy(), labels)
            result[f"{name}_map"] = mean_known(changed())
            if in_order is None:
                in_order = changed
            else:
                result[f"{name}_drop"] = result["in_order_map"] - result[f"{name}_map"]
                low, high = interval(_lost(in_order, changed, clips), clips)
                result[f"{name}_drop_low"], result[f"{name}_drop_high"] = low, high
            if len(own := _above_reverse(reordered, y, classes, reversed_pairs)):
                result[f"{name}_in_pair_top1"] = float(own.mean())
        return result

    def per_class_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """Columns class, clips (that have it), ap, precision, recall and f1 at its threshold, threshold,
        shuffled_drop (where measured: what its AP loses without the order of the frames)."""
        import pandas as pd

        y, said = predictions.labels.double().numpy(), self._said(predictions).double().numpy()
        found, named, positives = (said * y).sum(0), said.sum(0), y.sum(0)
        table = pd.DataFrame(
            {
                "class": list(classes),
                "clips": positives.astype(int),
                "ap": average_precision(predictions.probabilities.double().numpy(), y),
                "precision": _ratio(found, named),
                "recall": _ratio(found, positives),
                "f1": _ratio(2 * found, named + positives),
                "threshold": _thresholds(predictions, len(classes)),
            }
        )
        if predictions.orders:
            aps = {
                name: average_precision(p.double().numpy(), y)
                for name, p in predictions.orders.items()
            }
            table["shuffled_drop"] = aps["in_order"] - aps["shuffled"]
        return table

    def predictions_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a clip: id, label and predicted (the classes, one text), top5 (names, likeliest
        first), probabilities (in the order of `classes`, (C,) fp32), and for each order of time the
        classes predicted then."""
        import pandas as pd

        p = predictions.probabilities
        names = np.array(classes, dtype=object)
        top5 = p.topk(min(5, p.shape[1]), dim=1).indices.numpy()
        table = {
            "id": predictions.ids,
            "label": _texts(predictions.labels.bool(), classes),
            "predicted": _texts(self._said(predictions), classes),
            "top5": [list(row) for row in names[top5]],
            "probabilities": list(p.float().numpy()),
        }
        least = torch.tensor(_thresholds(predictions, len(classes)))
        for name, reordered in predictions.orders.items():
            table[f"{name}_predicted"] = _texts(reordered >= least, classes)
        return pd.DataFrame(table)

    def calibration_table(self, predictions: Predictions) -> pd.DataFrame:
        """Of every class of every clip; `clips` counts those pairs."""
        p, y = predictions.probabilities.double().numpy(), predictions.labels.double().numpy()
        return reliability(p.ravel(), y.ravel())

    def _said(self, predictions: Predictions) -> Tensor:
        """(N, C) bool."""
        classes = predictions.probabilities.shape[1]
        return predictions.probabilities >= torch.tensor(_thresholds(predictions, classes))


def _thresholds(predictions: Predictions, classes: int) -> list[float]:
    return list(predictions.thresholds or half(classes))


def _texts(said: Tensor, classes: Sequence[str]) -> list[str]:
    return [join_labels(classes[i] for i in row.nonzero()[:, 0].tolist()) for row in said]


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _lost(a: RankedScores, b: RankedScores, clips: int) -> Statistic:
    def statistic(i: NDArray[np.int64]) -> float:
        weights = np.bincount(i, minlength=clips).astype(np.float64)
        return mean_known(a(weights)) - mean_known(b(weights))

    return statistic


def _above_reverse(
    p: Tensor, y: Tensor, classes: Sequence[str], pairs: Sequence[Sequence[str]]
) -> Array:
    """1 or 0 for each clip and pair of which the clip has one class."""
    found: list[Tensor] = []
    for names in pairs:
        a, b = (list(classes).index(name) for name in names)
        one = y[:, a] != y[:, b]
        found.append((p[one, a] > p[one, b]) == y[one, a].bool())
    return torch.cat(found).double().numpy() if found else np.empty(0)
