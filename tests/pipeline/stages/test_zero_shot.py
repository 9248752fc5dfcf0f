"""A method that trains nothing, through every stage: and the numbers that leave are open_clip's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from small_clips import saved_clip, small_clips
from small_store import small_project
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.infra.study import page
from pipeline.infra.study.cell import CellRunner
from vidpipe.config.overlay import read_yaml
from vidpipe.files import read_json
from vidpipe.methods.prompts import ACTION_PROMPTS
from vidpipe.trained.package import load_package

T = 4


@pytest.fixture
def clip_model(in_folder: Path) -> Iterator[Any]:
    """A project whose backbone is a small open_clip model, which is given."""
    (in_folder / "cards").mkdir()
    with small_clips(in_folder / "cards"):
        model = saved_clip("small-clip", in_folder / "clip.safetensors")
        small_project(in_folder)
        raw = read_yaml(in_folder / "params.yaml")
        raw["backbone"] = {
            **{"source": "open_clip", "name": "small-clip"},
            "weights": str(in_folder / "clip.safetensors"),
        }
        (in_folder / "params.yaml").write_text(yaml.safe_dump(raw))
        yield model


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, repr(done.exception)
    return done.output


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 1
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_zero_shot_goes_through_every_stage(clip_model: Any, in_folder: Path) -> None:
    method = ("--method", "zero_shot")
    with pytest.warns(UserWarning, match=r"method zero_shot: 2 of 2 class names .* \(a, b\)"):
        run("train", *method)
    card = read_json(in_folder / "models/zero_shot/adapter/config.json")
    assert card["method_config"]["prompts"] == list(ACTION_PROMPTS)
    assert card["training"]["epoch"] == 0
    results = in_folder / "results/zero_shot"
    train = read_json(results / "train.json")
    assert (train["cost"]["tunable"], train["cost"]["tunable_without_head"]) == (0, 0)
    assert pd.read_csv(results / "history.csv").epoch.tolist() == [0]
    # The same command finds it done; nothing is left of a training.
    before = (results / "train.json").stat().st_mtime_ns
    run("train", *method)
    assert (results / "train.json").stat().st_mtime_ns == before
    assert not list((in_folder / "ray").glob("*"))

    # From here on no text is needed.
    weights = load_file(in_folder / "clip.safetensors")
    image = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    save_file(image, in_folder / "clip.safetensors")
    run("evaluate", *method)
    run("export", *method)
    run("report", "--methods", "zero_shot")
    assert "zero_shot" in (in_folder / "results/report.md").read_text()
    package = in_folder / "models/zero_shot/package"
    assert ACTION_PROMPTS[3] in (package / "MODEL_CARD.md").read_text()
    model = load_package(package).model
    video = torch.randn(2, 3, T, 48, 48)
    texts = open_clip.build_zero_shot_classifier(
        clip_model, open_clip.get_tokenizer("small-clip"), ["a", "b"], ACTION_PROMPTS
    )
    with torch.no_grad():
        frames = clip_model.encode_image(video.transpose(1, 2).flatten(0, 1), normalize=True)
        mean = F.normalize(frames.unflatten(0, (-1, T)).mean(1), dim=-1)
        expected = clip_model.logit_scale.exp() * mean @ texts
        torch.testing.assert_close(model(video), expected, atol=1e-5, rtol=1e-5)

    # A head from text is trained like any, under a name of its own.
    save_file(weights, in_folder / "clip.safetensors")
    train = ("train", "--method", "linear_probe", "--set", "train.epochs=2", "--set")
    text, plain = "methods.linear_probe.head_init=text", "methods.linear_probe.head_init=random"
    run(*train, text)
    state = load_file(in_folder / "models/linear_probe/adapter/adapter.safetensors")
    assert torch.equal(state["head.projection.weight"], weights["visual.proj"].T)
    assert state["head.scale"].item() == pytest.approx(weights["logit_scale"].exp().item())
    first = read_json(in_folder / "models/linear_probe/adapter/config.json")
    run(*train, plain)
    second = read_json(in_folder / "models/linear_probe/adapter/config.json")
    assert first["training"]["identity"] != second["training"]["identity"]

    # Of what only a training has, each command says that there is none.
    assert "trains nothing, so there is nothing to search" in refused("tune", *method)
    assert "method zero_shot: it trains nothing" in refused("train", *method, "--dry-run")
    cost = json.loads(run("profile", *method, "--classes", "2", "--json"))
    assert cost["parameters"]["tunable"] == 0


def test_a_text_head_on_a_backbone_without_texts_is_one_line(in_folder: Path) -> None:
    small_project(in_folder)
    message = refused("train", "--method", "zero_shot")
    assert message.startswith("method zero_shot needs a text tower, and backbone.name vit_still_")
    text = ("--set", "methods.aim.head_init=text")
    message = refused("train", "--method", "aim", *text)
    assert message.startswith("methods.aim.head_init: text needs a text tower, and ")
    assert not (in_folder / "models").exists()


@pytest.mark.filterwarnings("ignore")
def test_zero_shot_is_a_row_of_a_study_that_is_tested_once_a_fold(
    clip_model: Any, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = read_yaml(in_folder / "params.yaml")
    raw["study"] = {"methods": ["zero_shot", "linear_probe"], "folds": 2, "trials": 2, "seeds": 2}
    raw["study"] |= {"reference": "zero_shot", "inner_fraction": 0.4, "fractions": [0.5, 1.0]}
    (in_folder / "params.yaml").write_text(yaml.safe_dump(raw))
    plan = run("study", "--dry-run")
    assert "14: 4 trials, 10 final trainings" in plan, plan
    assert "fails" not in plan
    monkeypatch.setattr(page, "draw", lambda *_: {})  # pictures take longer than such trainings
    tested, test = [], CellRunner._test

    def recorded(runner: CellRunner, cell: Any, *rest: Any) -> Any:
        tested.append(cell.method)
        return test(runner, cell, *rest)

    monkeypatch.setattr(CellRunner, "_test", recorded)
    run("study")
    assert (tested.count("zero_shot"), tested.count("linear_probe")) == (2, 8)
    cells = pd.read_parquet(in_folder / "results/studies/default/cells.parquet")
    assert cells[cells.state == "failed"].empty
    kinds = cells.groupby(["method", "kind"]).size().to_dict()
    assert kinds == {
        ("zero_shot", "final"): 8,  # the same two tests for each seed and fraction
        ("linear_probe", "final"): 8,
        ("linear_probe", "trial"): 4,
    }
    assert (cells[cells.method == "zero_shot"].epochs == 0).all()
    accuracy = pd.read_csv(in_folder / "results/studies/default/accuracy.csv").set_index("method")
    assert accuracy.tunable_m["zero_shot"] == 0
    assert accuracy.training_gflops["zero_shot"] == 0
    assert accuracy.top1.notna().all()
    assert (accuracy.failed == 0).all()
    curves = pd.read_csv(in_folder / "results/studies/default/curves.csv")
    assert curves[curves.method == "zero_shot"].top1.nunique() == 1


def test_zero_shot_without_a_text_tower_is_a_row_with_the_reason(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "draw", lambda *_: {})
    small_project(in_folder, epochs=1)
    raw = read_yaml(in_folder / "params.yaml")
    raw["study"] = {"methods": ["zero_shot", "linear_probe"], "folds": 2, "trials": 1}
    raw["train"] |= {"warmup_epochs": 0}
    (in_folder / "params.yaml").write_text(yaml.safe_dump(raw))
    run("study")
    folder = in_folder / "results/studies/default"
    accuracy = pd.read_csv(folder / "accuracy.csv").set_index("method")
    assert accuracy.failed.to_dict() == {"zero_shot": 2, "linear_probe": 0}
    assert accuracy.top1.notna().to_dict() == {"zero_shot": False, "linear_probe": True}
    lines = (folder / "report.md").read_text().splitlines()
    said, row = (line for line in lines if "needs a text tower" in line)
    assert said.startswith("zero_shot has no result: ")
    assert row.startswith("| zero_shot | final | 2 | 1, 2 | ")
