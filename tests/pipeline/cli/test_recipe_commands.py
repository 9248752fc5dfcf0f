"""`vidpipe recipes`, `train --recipe` and `train --dry-run`, as they are typed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import moving
from project import PROJECT
from small_store import small_store
from tracking_store import copy_store
from typer.testing import CliRunner, Result

from pipeline.cli.app import app
from pipeline.tools import list_recipes as listing
from vidpipe.training.state import Progress
from vidpipe.video.encode import encode_h264
from vidpipe.video.store import read_manifest

PARAMS = str(PROJECT / "params.yaml")
# A recipe at a size for a test: the embedded ViT in place of CLIP's, one epoch of a few clips.
SMALL = {
    "backbone.name": "vit_still_patch12_48",
    "backbone.weights": str(PROJECT / "src/vidpipe/assets/vit_still.safetensors"),
    "transform.size": 48,
    "transform.short_side": "[48,56]",
    "sampling.num_frames": 4,
    "sampling.stride": 2,
    "train.steps": "null",
    "train.epochs": 1,
    "train.warmup_epochs": 0,
    "train.batch_size": 4,
    "train.threads": 1,
    "train.memory_gb_per_worker": 0.2,
    "extract.short_side": 48,
    "extract.num_workers": 1,
    "data.layout": "folders",
}


def invoke(*arguments: str, **overrides: object) -> Result:
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    return CliRunner().invoke(app, [*arguments, *sets])


def refused(result: Result) -> str:
    assert result.exit_code == 1
    return str(result.exception)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- recipes --------------------------------------------------------------------------------


def test_recipes_as_a_table_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("k400_st_adapter_b16_8f", "hmdb51_zeroi2v_b16_8f_from_k400", "weizmann")
    monkeypatch.setattr(listing, "list_recipes", lambda: [(name, "") for name in names])
    shown = invoke("recipes").output
    assert re.search(r"k400_st_adapter_b16_8f *│ K400 .* 3x1 .* 7\.42 .* 455 .* 82\.0", shown)
    assert "40% of an A100's 312 bf16 TFLOPS" in shown
    assert "weizmann: Weizmann actions" in shown

    document = json.loads(invoke("recipes", "--json").output)
    rows = {row["name"]: row for row in document["recipes"]}
    assert list(rows) == list(names)
    assert rows[names[0]]["clip_epochs"] == 2_560_000
    assert rows[names[1]]["starts_from"] == "k400_zeroi2v_b16_8f"
    assert rows[names[2]]["top1"] is None
    assert document["data"]["K400"] == {"classes": 400, "clips": 240_000}


# -- the method of a recipe -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--method is missing: no --recipe; `vidpipe methods` lists them"),
        (["--recipe", "weizmann"], "--method is missing: --recipe weizmann has 4 methods"),
        (["--recipe", "TWO"], r"--method is missing: --recipe .*two.yaml has 2 methods"),
        (["--method", "st_adaptor"], "no such method; nearest is st_adapter"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "export"])
def test_a_method_is_needed(
    command: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    two = tmp_path / "two.yaml"
    two.write_text("methods: {aim: {lr: 1e-3}, zeroi2v: {lr: 1e-3}}\n")
    given = [str(two) if a == "TWO" else a for a in arguments]
    result = invoke(command, "--params", PARAMS, "--out", str(tmp_path), *given)
    assert re.search(message, refused(result))


# -- train ----------------------------------------------------------------------------------


def test_a_recipe_trains_from_a_folder_of_videos(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vidpipe train --recipe NAME --data-root DIR`: no method, no stage before it."""
    for i in range(10):
        file = in_folder / "videos" / "ab"[i % 2] / f"c{i}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_h264(iter(np.roll(moving(20), 3 * i, 2)), 20, 8).data)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy_store(in_folder)}")
    arguments = ("--params", PARAMS, "--recipe", "k400_st_adapter_b16_8f")
    result = invoke("train", *arguments, "--data-root", "videos", **SMALL)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert len(read_manifest(in_folder / "data" / "store").rows) == 10
    card = json.loads((in_folder / "models/st_adapter/adapter/config.json").read_text())
    assert card["sampling"]["rule"] == "st_adapter"
    assert card["method_config"]["base_lr"] == 5e-4
    again = invoke("train", *arguments, "--dry-run", **SMALL)
    assert re.search(r"resumes +no: it is finished, its adapter is models", again.output)


# -- dry run --------------------------------------------------------------------------------


@pytest.fixture
def with_store(in_folder: Path) -> Path:
    (in_folder / "data" / "store").mkdir(parents=True)
    small_store(in_folder / "data" / "store")
    return in_folder


def dry_run(*more: str, **overrides: object) -> dict[str, str]:
    arguments = ("--params", PARAMS, "--recipe", "k400_aim_b16_8f", "--dry-run")
    result = invoke("train", *arguments, *more, **{**SMALL, **overrides})
    assert result.exit_code == 0, result.output + repr(result.exception)
    lines = [line for line in result.output.splitlines() if line.strip()]
    return {line[:20].strip(): line[21:] for line in lines}


def test_dry_run_plans_times_and_writes_nothing(
    with_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = tree(with_store)
    options = {"train.epochs": 3, "train.accumulate": 2, "train.eval_every": 2}
    plan = dry_run(**options)
    assert tree(with_store) == before
    assert plan["batch"] == "4 clips a step: 1 x 4 in parts of 2"
    assert plan["steps"] == "6 in 3 epochs of 2; validated 2 times"  # 7 clips: 4 and 3
    assert plan["data"] == "7 clips to train, 3 to validate"
    with_head, without = (
        int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", plan["trained parameters"])
    )
    assert with_head - without == 2 * (96 + 1)
    assert re.match(r"about [\d.]+ GiB a worker: .* activations of 2 clips", plan["memory"])
    assert re.match(r"[\d.e-]+ s, \d+% of it waiting for clips \(median of 3", plan["a step"])
    assert plan["resumes"].startswith("no")
    assert plan["device"].startswith(("CPU, this process", "NVIDIA"))

    # The name is the training's own: it follows the settings, and its state is found again.
    assert dry_run(**options)["run"] == plan["run"]
    assert dry_run(**options, **{"methods.aim.lr": 1e-3})["run"] != plan["run"]
    (with_store / "ray" / plan["run"] / "checkpoints" / "00000002-0002").mkdir(parents=True)
    monkeypatch.setattr(Progress, "read", lambda folder: Progress(step=2))
    assert dry_run(**options)["resumes"].startswith("yes: after step 2, from ")


def test_dry_run_counts_steps_workers_and_16_bits(with_store: Path) -> None:
    plan = dry_run(**{"train.steps": 10, "train.num_workers": 2})
    assert plan["steps"] == "10 in 5 epochs of 2; validated 5 times"
    assert plan["batch"] == "4 clips a step: 2 x 2"
    assert "2 Ray workers" in plan["device"]
    kept = [
        float(dry_run(**{"train.precision": p})["memory"].split()[-1]) for p in ("fp32", "bf16")
    ]
    assert kept[1] == pytest.approx(kept[0] / 2, rel=0.1)
    assert "4 of 4 blocks recomputed" in dry_run(**{"train.activation_gb": 0})["memory"]


def test_dry_run_without_data(in_folder: Path) -> None:
    arguments = ("train", "--params", PARAMS, "--recipe", "k400_aim_b16_8f", "--dry-run")
    assert "run `vidpipe extract` first" in refused(invoke(*arguments, **SMALL))
    assert not list(in_folder.iterdir())


def test_a_start_that_training_does_not_make_is_said(
    with_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--params", PARAMS, "--recipe", "ucf101_zeroi2v_b16_8f_from_k400", "--dry-run")
    shown = invoke("train", *arguments, **SMALL)
    assert shown.exit_code == 0, repr(shown.exception)
    said = shown.output + shown.stderr + capfd.readouterr().err
    assert "starts from the adapter of k400_zeroi2v_b16_8f" in said
    shutil.rmtree(with_store / "data")
