"""Several labels a clip through the stages, and a model of one task on data of another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from project import command
from small_store import SEVERAL, UNIFORM, small_project, small_store

from pipeline.tools.prediction_writers import as_row
from vidpipe.data.config import TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import to_input
from vidpipe.export.packaging import describe
from vidpipe.export.programs import open_program, write_program
from vidpipe.inference.stream import Prediction
from vidpipe.tasks.multilabel import MultiLabel
from vidpipe.trained.classifier import Classifier
from vidpipe.trained.frames import of_frames
from vidpipe.trained.package import open_model
from vidpipe.trained.predictor import Predictor
from vidpipe.video.store import FrameStore


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    small_project(folder, clips=12, task="multilabel", epochs=2, warmup_epochs=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("linear_probe", "st_adapter"):
            for stage in ("train", "evaluate"):
                assert command(patch, stage, "--method", method) == 0
    return folder


def test_a_model_knows_its_task(trained: Path) -> None:
    card = json.loads((trained / "models/linear_probe/adapter/config.json").read_text())
    assert card["task"] == "multilabel"
    assert len(card["thresholds"]) == 2
    assert card["thresholds"] != [0.5, 0.5]
    assert open_model(trained / "models/linear_probe/adapter").task.name == "multilabel"


def test_an_evaluation_has_the_numbers_of_several_labels(trained: Path) -> None:
    found = json.loads((trained / "results/linear_probe/eval.json").read_text())
    assert {"map", "micro_f1", "macro_f1", "in_order_map", "shuffled_drop"} <= found.keys()
    folder = trained / "models/linear_probe/evaluation"
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table.label.tolist() == [SEVERAL[i % 4] for i in range(9, 12)]
    assert (folder / "calibration.png").exists()
    assert not (folder / "confusion.png").exists()


def test_thresholds_are_those_of_the_training_clips(trained: Path) -> None:
    model = open_model(trained / "models/linear_probe/adapter")
    views = ViewSet(
        Clips(FrameStore(trained / "data/store"), "train", model.classes),
        model.sampling,
        model.transform,
    )
    normalisation = (model.backbone.mean, model.backbone.std)
    with torch.no_grad():
        samples = [views[i] for i in range(len(views))]
        logits = model.model(to_input(torch.cat([s["video"] for s in samples]), *normalisation))
    labels = torch.stack([s["label"] for s in samples])
    expected = MultiLabel().choose_thresholds(logits.sigmoid(), labels)
    assert model.thresholds == pytest.approx(expected, abs=1e-5)


def test_runs_of_several_labels_are_compared_by_map(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert command(monkeypatch, "compare", "linear_probe", "st_adapter") == 0
    out = capsys.readouterr().out
    assert "map" in out
    assert "subset_accuracy" in out
    found = [
        json.loads((trained / f"results/{name}/eval.json").read_text())
        for name in ("linear_probe", "st_adapter")
    ]
    (folder,) = (trained / "results/compare").iterdir()
    table = pd.read_csv(folder / "metrics.csv").set_index("metric")
    assert table.a["map"] == pytest.approx(found[0]["map"])
    assert table.b["subset_accuracy"] == pytest.approx(found[1]["subset_accuracy"])
    classes = pd.read_csv(folder / "per_class.csv").set_index("class")
    own = pd.read_csv(trained / "results/linear_probe/per_class.csv").set_index("class")
    assert classes.a["a"] == pytest.approx(own.ap["a"])
    assert command(monkeypatch, "splits", "linear_probe", "st_adapter") == 1
    assert "data.task multilabel; expected top-1" in capsys.readouterr().err.splitlines()[-1]


def test_the_report_has_map(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert command(monkeypatch, "report") == 0
    table = pd.read_csv(trained / "results/report/accuracy.csv").set_index("method")
    found = json.loads((trained / "results/st_adapter/eval.json").read_text())
    assert table["map"]["st_adapter"] == pytest.approx(found["map"])
    assert "mAP %" in (trained / "results/report.md").read_text()


def test_a_prediction_names_the_classes_that_reach_their_thresholds(trained: Path) -> None:
    model = open_model(trained / "models/linear_probe/adapter")
    low, high = (replace(model, thresholds=t) for t in ([0.0, 0.0], [1.0, 1.0]))
    clip = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    assert {g.label for g in Classifier(low, "cpu").predict(clip)} == {"a", "b"}
    assert Classifier(high, "cpu").predict(clip) == []
    segment = of_frames(clip, model.sampling, 1)
    predictor = Predictor({"m": high})
    ((found,),) = (predictor([segment]),)
    row = as_row(
        Prediction(
            "x.mp4", "m", classes=["a", "b"], probabilities=found["m"], thresholds=[1.0, 0.0]
        ),
        top=5,
    )
    assert row["labels"] == ["b"]
    assert len(row["all_probabilities"]) == 2


def test_programs_give_probabilities(trained: Path, tmp_path: Path) -> None:
    model = open_model(trained / "models/linear_probe/adapter")
    about = describe(model, model.model)
    assert about["output"]["name"] == "probabilities"
    clips = torch.randint(0, 256, (3, 4, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.model(to_input(clips, model.backbone.mean, model.backbone.std)).sigmoid()
    for form in ("torch_export", "onnx"):
        found = open_program(write_program(tmp_path, model, form, "fp32", about))(clips)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_a_model_of_another_task_than_the_data_is_refused(
    trained: Path,
    stage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    words = (stage, "--method", "linear_probe", "--set", "data.task=single_label")
    assert command(monkeypatch, *words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "data.task: single_label, but data/store was extracted for multilabel" in line
    small_store(tmp_path)
    words = (*words, "--set", f"data.store={tmp_path}")
    assert command(monkeypatch, *words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"adapter is for data.task multilabel and {tmp_path} for single_label" in line


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.balance=sample", "draws by the one class of a clip"),
        ("data.task=single_label train.focal_gamma=2", "is of the loss of several labels"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    trained: Path,
    setting: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    sets = [word for part in setting.split() for word in ("--set", part)]
    assert command(monkeypatch, "train", "--method", "linear_probe", *sets) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_flip_swaps_the_columns_of_a_pair(tmp_path: Path) -> None:
    clips = Clips(small_store(tmp_path, task="multilabel"), "train", ["a", "b"])
    assert clips.labels.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]]
    config = TransformConfig.model_validate({"size": 32, "flip": True, "flip_pairs": [["a", "b"]]})
    samples = TrainSet(clips, UNIFORM, config, seed=0)
    plain = TrainSet(clips, UNIFORM, config.model_copy(update={"flip": False}), seed=0)
    flipped = 0
    for epoch in range(8):
        label, before = samples[epoch, 0]["label"], plain[epoch, 0]["label"]
        assert before.tolist() == [1, 0]
        assert label.tolist() in ([1, 0], [0, 1])
        flipped += label.tolist() == [0, 1]
        assert samples[epoch, 2]["label"].tolist() == [1, 1]
    assert 0 < flipped < 8


def test_mixed_targets_are_shares_of_both_clips_classes() -> None:
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    mixed = PairMixer(1.0, 0.0, seed=3)(torch.rand(2, 3, 1, 4, 4), labels, [0, 1], 0)
    w = float(mixed.weights[0])
    assert 0 < w < 1
    expected = torch.tensor([[w, 0, 1], [1 - w, 0, 1]])
    torch.testing.assert_close(mixed.targets(3), expected)
    heavier = labels if w >= 0.5 else labels.flip(0)
    assert mixed.heavier.equal(heavier)
