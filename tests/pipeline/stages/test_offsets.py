"""`head_offsets: auto` in a training, in a study and by `vidpipe tune --offsets`, on ten clips."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow.tracking import MlflowClient
from small_store import small_project
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.infra import offsets
from pipeline.infra.mlflow.server import tracking_uri
from pipeline.infra.study.cell import CellRunner
from pipeline.infra.study.plan import make_plan
from pipeline.infra.training_setup import seeded_model
from pipeline.infra.workspace import Workspace
from pipeline.stages import train
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.files import read_json
from vidpipe.methods.offset_search import full
from vidpipe.methods.stdha import STDHA
from vidpipe.params import Params, TrackingConfig, parse_params
from vidpipe.profile import training_gmacs

HERE = Workspace(Path())
AUTO = {"share": 0.25, "reach": 1}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_project(tmp_path, epochs=2, eval_every=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(head_offsets: Any = AUTO, **more: Any) -> Params:
    own = {"methods": {"zeroi2v": {"head_offsets": head_offsets}}, **more}
    return parse_params(deep_merge(read_yaml(Path("params.yaml")), own))


def test_a_training_finds_offsets_and_is_the_one_that_is_given_them(project: Path) -> None:
    train.run(params(), "zeroi2v", HERE)
    card = read_json(HERE.adapter("zeroi2v") / "config.json")
    found = card["method_config"]["head_offsets"]
    assert len(found) == 4
    assert 1 <= sum(dt != 0 for dts in found for dt in dts) <= 6
    assert {dt for dts in found for dt in dts} <= {-1, 0, 1}
    left = read_json(HERE.results / "offsets" / "zeroi2v.json")
    assert left["head_offsets"] == found
    assert (HERE.results / "offsets" / "zeroi2v.png").stat().st_size > 10_000
    assert [path.name for path in HERE.ray.iterdir() if path.is_dir()] == []
    tensors = (HERE.adapter("zeroi2v") / "adapter.safetensors").read_bytes()

    client = MlflowClient(tracking_uri(TrackingConfig()))
    runs = client.search_runs([client.get_experiment_by_name("vidpipe").experiment_id])
    by_stage = {run.data.tags["vidpipe.stage"]: run for run in runs}
    nested, parent = by_stage["offsets"], by_stage["train"]
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert json.loads(nested.data.tags["head_offsets"]) == found
    assert len(client.get_metric_history(nested.info.run_id, "train_loss")) == 2

    # Once more is nothing to do; the same offsets by hand are the same training.
    train.run(params(), "zeroi2v", HERE)
    train.run(params(found), "zeroi2v", HERE)
    assert (HERE.adapter("zeroi2v") / "adapter.safetensors").read_bytes() == tensors


def test_a_search_keeps_to_the_adapted_blocks(project: Path) -> None:
    methods = {"zeroi2v": {"head_offsets": AUTO, "blocks": [2, 3]}}
    model = cast(STDHA, seeded_model(params(methods=methods), "zeroi2v", ["a", "b"]).model)
    assert [any(dts) for dts in full(model)] == [False, False, True, True]


def test_a_search_that_is_stopped_goes_on_to_the_same_end(project: Path) -> None:
    whole = offsets.search(params(), "zeroi2v", HERE, "whole", tracked=False)
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 2

    with pytest.raises(TrainingStopped):
        offsets.search(params(), "zeroi2v", HERE, "part", tracked=False, stop=stop)
    assert not (HERE.ray / "part" / "found.json").exists()
    went_on = offsets.search(params(), "zeroi2v", HERE, "part", tracked=False)
    assert went_on == whole
    files = [(HERE.ray / name / "found.json").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]
    # What was found is read, not found again.
    assert offsets.search(params(), "zeroi2v", HERE, "part", tracked=False, stop=stop) == whole


def test_a_cell_of_a_study_searches_on_its_own_training_clips(project: Path) -> None:
    study = {
        "name": "small",
        "rows": {"found": {"method": "zeroi2v", "head_offsets": "{share: 0.25, reach: 1}"}},
        "reference": "found",
        "folds": 2,
        "trials": 1,
    }
    raw = deep_merge(read_yaml(Path("params.yaml")), {"study": study})
    plan = make_plan(parse_params(raw), raw, HERE)
    (row,), part = plan.rows, plan.parts[0]
    assert row.error is None
    given = params([-1, 1])
    assert row.training_gmacs == 2 * training_gmacs(
        seeded_model(given, "zeroi2v", ["a", "b"]).model, 48
    )
    (cell,) = plan.final_cells(row, part, 0)
    CellRunner(parse_params(raw), HERE)(cell)
    assert read_json(cell.folder(HERE) / "result.json")["state"] == "finished"
    assert not list(HERE.ray.glob("offsets-*"))


def test_tune_offsets_prints_what_to_write(project: Path) -> None:
    told = ("tune", "--offsets", "--method", "lora", "--share", "0.2", "--reach", "2")
    result = CliRunner().invoke(app, [*told, "--max-epochs", "1", "--set", "methods.lora.rank=4"])
    assert result.exit_code == 0, result.output
    command = shlex.split(result.stdout.strip().splitlines()[-1])
    assert command[:4] == ["vidpipe", "params", "--write", "--set"]
    key, _, value = command[4].partition("=")
    assert key == "methods.lora.head_offsets"
    assert json.loads(value) == read_json(Path("results/offsets/lora.json"))["head_offsets"]
    assert not list(HERE.ray.glob("offsets-*"))
    assert not Path("models").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "zeroi2v", "--share", "0"], "a share of 0 of 24 heads leaves none"),
        (["--method", "zeroi2v", "--share", "0.01"], "leaves none to look at other frames"),
        (["--method", "zeroi2v", "--reach", "4"], "but a clip has 4 frames; it is at most 3"),
        (["--method", "st_adapter"], "method st_adapter: it has no head_offsets"),
    ],
)
def test_what_cannot_be_searched_is_one_line(project: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["tune", "--offsets", *words])
    assert result.exit_code != 0
    said = str(result.exception) if isinstance(result.exception, VidpipeError) else result.output
    assert message in " ".join(said.split())
    assert not Path("ray").exists() or not any(Path("ray").iterdir())
