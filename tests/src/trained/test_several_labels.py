"""A model of several labels from Python: fitted, saved, opened, asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vidpipe
from vidpipe.backbones.still import WEIGHTS
from vidpipe.errors import VidpipeError

LABELS = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])


def model() -> vidpipe.methods.base.VideoModel:
    options = {"num_classes": 2, "num_frames": 2, "weights": WEIGHTS}
    return vidpipe.create_model("linear_probe", "vit_still_patch12_48", **options)


def clips() -> torch.Tensor:
    """Red where the first class is, blue where the second is."""
    found = torch.zeros(4, 2, 3, 48, 48, dtype=torch.uint8)
    found[:, :, 0] = 200 * LABELS[:, :1, None, None]
    found[:, :, 2] = 200 * LABELS[:, 1:, None, None]
    return found


def test_fit_save_load_predict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, data = model(), torch.utils.data.TensorDataset(clips(), LABELS)
    options = {"epochs": 60, "batch_size": 4, "lr": 0.05, "task": "multilabel"}
    history = vidpipe.fit(own, data, data, **options)
    assert history[-1].val_top1 == 1
    folder = vidpipe.save(own, tmp_path / "out", classes=["red", "blue"], task="multilabel")
    clf = vidpipe.load(folder, device="cpu")
    said = [{guess.label for guess in clf.predict(clip)} for clip in clips()]
    assert said == [{"red"}, {"blue"}, {"red", "blue"}, set()]
    high = vidpipe.save(
        own, tmp_path / "high", classes=["red", "blue"], task="multilabel", thresholds=[1, 0.5]
    )
    assert [g.label for g in vidpipe.load(high, device="cpu").predict(clips()[2])] == ["blue"]


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (LABELS, "single_label", r"train\[\d\]: expected \(frames, label\).* a class index"),
        (LABELS[:, 0], "multilabel", r"label of shape \(\), expected \(2,\): 1 for each class"),
        (LABELS * 2, "multilabel", r"expected \(2,\): 1 for each class of the clip, else 0"),
        (LABELS, "multilable", "task multilable: no such task; nearest is multilabel"),
    ],
)
def test_labels_of_another_task_are_refused(labels: torch.Tensor, task: str, message: str) -> None:
    data = torch.utils.data.TensorDataset(clips(), labels)
    with pytest.raises(VidpipeError, match=message):
        vidpipe.fit(model(), data, epochs=1, batch_size=4, lr=0.1, task=task)


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 1.5]])
def test_thresholds_are_one_a_class(tmp_path: Path, thresholds: list[float]) -> None:
    with pytest.raises(VidpipeError, match="thresholds"):
        vidpipe.save(
            model(), tmp_path, classes=["red", "blue"], task="multilabel", thresholds=thresholds
        )
