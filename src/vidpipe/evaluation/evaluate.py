"""Multi-view evaluation: softmax of every view, averaged, then compared with the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

from vidpipe.data.dataset import ViewSet, to_input
from vidpipe.methods.base import VideoModel


@dataclass
class Predictions:
    ids: list[str]
    labels: Tensor
    """(N,) class indices."""
    view_probabilities: Tensor
    """(N, V, C): the softmax of each view."""

    @property
    def probabilities(self) -> Tensor:
        """(N, C). Softmax first, then the mean over views: all three code bases do so."""
        return self.view_probabilities.mean(1)

    def view_top1(self) -> list[float]:
        """Accuracy of each view alone."""
        correct = self.view_probabilities.argmax(2) == self.labels[:, None]
        return [float(share) for share in correct.float().mean(0)]


@torch.no_grad()
def predict(
    model: VideoModel,
    views: ViewSet,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda clips: None,
) -> Predictions:
    """All clips of `views`, `batch_size` clips (each with all its views) at a time."""
    model.eval()
    device = next(model.parameters()).device
    labels, probabilities = [], []
    for batch in DataLoader(views, batch_size=batch_size):
        video = batch["video"].to(device)
        clips, count = video.shape[:2]
        logits = model(to_input(video.flatten(0, 1), *normalisation))
        probabilities.append(logits.float().softmax(-1).unflatten(0, (clips, count)).cpu())
        labels.append(batch["label"])
        on_batch(clips)
    return Predictions(views.clips.ids, torch.cat(labels), torch.cat(probabilities))


def metrics(
    predictions: Predictions, classes: Sequence[str], reversed_pairs: Sequence[Sequence[str]] = ()
) -> dict[str, float]:
    """top1, top5 and mean class accuracy as fractions; `in_pair_top1` where pairs are given:
    the share of clips, of classes in a pair, that rank their own class above its reverse."""
    p, y = predictions.probabilities, predictions.labels
    n = len(classes)

    def accuracy(average: str, top_k: int = 1) -> float:
        return float(multiclass_accuracy(p, y, n, average=average, top_k=top_k))  # type: ignore[arg-type]

    # Classes without a clip have no accuracy; torchmetrics would count them as 0.
    per_class = torch.tensor([(p[y == c].argmax(1) == c).float().mean() for c in y.unique()])
    result = {
        "top1": accuracy("micro"),
        "top5": accuracy("micro", min(5, n)),
        "mean_class_accuracy": float(per_class.mean()),
        "clips": float(len(y)),
    }
    partner = {}
    for a, b in reversed_pairs:
        partner[classes.index(a)], partner[classes.index(b)] = classes.index(b), classes.index(a)
    paired = [i for i, c in enumerate(y.tolist()) if c in partner]
    if paired:
        own = p[paired, y[paired]]
        reverse = p[paired, [partner[c] for c in y[paired].tolist()]]
        result["in_pair_top1"] = float((own > reverse).float().mean())
    return result


def per_class_table(predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
    """Columns class, clips, top1, most_confused_with (empty where nothing was)."""
    confusion = confusion_matrix(predictions, classes)
    rows = []
    for index, name in enumerate(classes):
        counts = confusion[index].clone()
        total, correct = int(counts.sum()), int(counts[index])
        counts[index] = 0
        worst = classes[int(counts.argmax())] if int(counts.sum()) else ""
        rows.append((name, total, correct / total if total else None, worst))
    return pd.DataFrame(rows, columns=["class", "clips", "top1", "most_confused_with"])


def confusion_matrix(predictions: Predictions, classes: Sequence[str]) -> Tensor:
    """(C, C) counts: row is the label, column the prediction."""
    matrix: Tensor = multiclass_confusion_matrix(
        predictions.probabilities.argmax(1), predictions.labels, len(classes)
    )
    return matrix
