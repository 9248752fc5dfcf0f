"""What people in boxes do: any number of actions each, frame mAP at IoU 0.5.

B key frames, M boxes of the one that has most, C classes. Logits are (B, M, C); a target is (B, M, C),
in which a box that is no ground truth has UNKNOWN. Ground-truth boxes are trained on; testing looks at
them and at proposals in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vidpipe.errors import VidpipeError
from vidpipe.tasks.base import PLAIN, LossOptions, Predictions
from vidpipe.tasks.independent import IndependentClasses
from vidpipe.tasks.multilabel import MultiLabel
from vidpipe.tasks.scores import ECE_BINS, reliability

if TYPE_CHECKING:
    import pandas as pd

    from vidpipe.methods.base import VideoModel
    from vidpipe.tasks.detection.dataset import KeyFrames

BOXES = MultiLabel()
"""A box is what a clip is of several labels."""


class Detection(IndependentClasses):
    """AVA's task; `name` is that of `data.task`."""

    name = "detection"
    score, score_name = "map", "mAP"
    inputs = ("clips", "boxes")

    def network(self, model: VideoModel) -> nn.Module:
        from vidpipe.tasks.detection.detector import Detector

        return Detector(model)

    def loss(self, logits: Tensor, target: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Of `each`, mean over classes; sum over ground-truth boxes, mean over key frames over
        `boxes_per_clip`: on average the mean over boxes, whatever the split into workers and parts."""
        each = self.each(logits, target.clamp(0), options) * (target >= 0)
        return each.sum() / (target.shape[-1] * options.boxes_per_clip * len(target))

    def loss_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over key frames of the mean over their ground-truth boxes."""
        known = target >= 0
        each = self.each(logits, target.clamp(0)) * known
        return (each.sum((1, 2)) / known.sum((1, 2)).clamp(1)).sum()

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B,) share of the ground-truth boxes whose likeliest class is one of theirs; 1 without any."""
        known = target[..., 0] >= 0
        hit = BOXES.correct(logits.flatten(0, 1), target.clamp(0).flatten(0, 1)).view(known.shape)
        count = known.sum(1)
        share = (hit & known).sum(1) / count.clamp(1)
        return torch.where(count > 0, share, 1.0)

    def score_of(self, outputs: Tensor, labels: Tensor) -> float:
        """mAP over ground-truth boxes, each with its own score: what a lower precision may lose."""
        known = labels[..., 0] >= 0
        return BOXES.score_of(outputs[known], labels[known])

    def metrics(
        self,
        predictions: Predictions,
        classes: Sequence[str],
        reversed_pairs: Sequence[Sequence[str]] = (),
    ) -> dict[str, float]:
        """Fractions. map: frame mAP at IoU 0.5 by AVA's rule, of the proposals where there are any,
        else of the ground-truth boxes; map_truth_boxes, map_proposals: of each. top1: of the
        ground-truth boxes, whether the likeliest class is one of theirs. ece: expected calibration error
        of all their probabilities. Where the use of time was measured: map with the frames in_order,
        reversed, shuffled and frozen, and what each loses (`NAME_drop`).

        Raises VidpipeError for reversed pairs, which have no meaning for boxes.
        """
        from torchmetrics.functional.classification import binary_calibration_error

        if reversed_pairs:
            raise VidpipeError("evaluate.reversed_pairs: not for task detection; set it to []")
        clips: KeyFrames = predictions.clips
        flat = _flat(predictions.probabilities, clips)
        result = {"map": 0.0, **_maps(flat, clips, classes)}
        proposed = "map_proposals" in result
        result["map"] = result["map_proposals" if proposed else "map_truth_boxes"]
        own, labels = flat[clips.truth], torch.from_numpy(clips.targets[clips.truth])
        if len(own):
            result["top1"] = float(
                BOXES.correct(own.double().logit(), labels.long()).float().mean()
            )
            found = binary_calibration_error(own.flatten(), labels.flatten(), n_bins=ECE_BINS)
            result["ece"] = float(found)
        result["clips"], result["boxes"] = float(len(clips)), float(len(own))
        for name, reordered in predictions.orders.items():
            maps = _maps(_flat(reordered, clips), clips, classes)
            result[f"{name}_map"] = maps["map_proposals" if proposed else "map_truth_boxes"]
            if name != "in_order":
                result[f"{name}_drop"] = result["in_order_map"] - result[f"{name}_map"]
        return result

    def per_class_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """Columns class, boxes (that have it), ap (by proposals where there are any), ap_truth_boxes;
        empty where no box has the class, or the metric does not count it."""
        import pandas as pd

        clips: KeyFrames = predictions.clips
        aps = _aps(_flat(predictions.probabilities, clips), clips, classes)
        table = pd.DataFrame(
            {
                "class": list(classes),
                "boxes": clips.targets[clips.truth].sum(0).astype(int),
                "ap": [
                    aps.get("proposals", aps["truth_boxes"])["ap"].get(name) for name in classes
                ],
                "ap_truth_boxes": [aps["truth_boxes"]["ap"].get(name) for name in classes],
            }
        )
        return table.astype({"ap": float, "ap_truth_boxes": float})

    def predictions_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a box: id (video@second), x1, y1, x2, y2, truth (whether it is a ground-truth box),
        label (its classes, one text), predicted (the likeliest), top5, probabilities (C,)."""
        import pandas as pd

        from vidpipe.data.labels import join_labels

        clips: KeyFrames = predictions.clips
        p = _flat(predictions.probabilities, clips)
        names = np.array(classes, dtype=object)
        top5 = names[p.topk(min(5, p.shape[1]), dim=1).indices.numpy()]
        ids = np.repeat(np.array(predictions.ids, dtype=object), np.diff(clips.starts))
        return pd.DataFrame(
            {
                "id": ids,
                **dict(zip(("x1", "y1", "x2", "y2"), clips.raw.T, strict=True)),
                "truth": clips.truth,
                "label": [join_labels(names[own.astype(bool)]) for own in clips.targets],
                "predicted": top5[:, 0],
                "top5": [list(row) for row in top5],
                "probabilities": list(p.float().numpy()),
            }
        )

    def rows(self, predictions: Predictions, values: Tensor) -> Tensor:
        return _flat(values, predictions.clips)

    def calibration_table(self, predictions: Predictions) -> pd.DataFrame:
        """Of every class of every ground-truth box; `clips` counts those pairs."""
        clips: KeyFrames = predictions.clips
        p = _flat(predictions.probabilities, clips)[clips.truth].double().numpy()
        return reliability(p.ravel(), clips.targets[clips.truth].astype(np.float64).ravel())


def _flat(padded: Tensor, clips: KeyFrames) -> Tensor:
    """(N, M, C) -> (K, C), the boxes that there are."""
    return padded[torch.from_numpy(clips.filled)]


def _maps(flat: Tensor, clips: KeyFrames, classes: Sequence[str]) -> dict[str, float]:
    return {f"map_{name}": found["map"] for name, found in _aps(flat, clips, classes).items()}


def _aps(flat: Tensor, clips: KeyFrames, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`frame_map` by the boxes that were looked at: `truth_boxes`, and `proposals` where there are
    any."""
    from vidpipe.data.boxes import PROPOSAL
    from vidpipe.data.layouts.ava_files import Boxes
    from vidpipe.tasks.detection.ava_metric import map_of_rows, numbered

    counted = np.array(clips.annotated.evaluated, dtype=np.int64)
    rows = clips.annotated
    own = rows.take((rows.action != PROPOSAL) & np.isin(rows.action, counted))
    videos, seconds = clips.annotated.video[clips._frames], clips.seconds
    frames = [(str(v), int(s)) for v, s in zip(videos.tolist(), seconds.tolist(), strict=True)]
    place = {frame: number for number, frame in enumerate(frames)}
    at = [place[str(v), s] for v, s in zip(own.video.tolist(), own.second.tolist(), strict=True)]
    action = own.action.astype(np.int64)
    truth = numbered(Boxes(frames, np.array(at, dtype=np.int64), own.boxes, action, own.score))
    names = {int(index): classes[index] for index in counted}
    of_box = np.repeat(np.arange(len(frames)), np.diff(clips.starts))
    found = {}
    for name, chosen in (("truth_boxes", clips.truth), ("proposals", np.logical_not(clips.truth))):
        index = np.flatnonzero(chosen)
        if not len(index) and name == "proposals":
            continue
        said = Boxes(
            frames,
            np.repeat(of_box[index], len(counted)),
            np.repeat(clips.raw[index], len(counted), 0),
            np.tile(counted, len(index)),
            flat[torch.from_numpy(index)][:, counted].double().numpy().ravel(),
        )
        found[name] = map_of_rows(truth, numbered(said), names)
    return found
