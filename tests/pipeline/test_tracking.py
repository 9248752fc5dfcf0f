"""Tracking: one store, one run a training, and no outage that ends one."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from small_store import small_project

from pipeline.infra.locks import locked
from pipeline.infra.workspace import Workspace, training_hash
from pipeline.stages import train
from vidpipe.errors import VidpipeError
from vidpipe.params import load_params
from vidpipe.trained.adapter import new_model


def test_a_second_command_of_a_running_training_leaves_its_run_alone(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_folder}/mlflow.db")
    small_project(in_folder)
    params, workspace = load_params(in_folder / "params.yaml"), Workspace(in_folder)
    weights = new_model(params, "linear_probe", ["a", "b"]).backbone.sha256
    identity = training_hash(params, "linear_probe", workspace, weights)
    client = MlflowClient()
    experiment = client.create_experiment(params.tracking.experiment)
    tags = {"vidpipe.stage": "train", "vidpipe.method": "linear_probe"}
    run = client.create_run(experiment, tags=tags | {"vidpipe.config_hash": identity})
    with (
        locked(workspace.ray / f"linear_probe-{identity}"),
        pytest.raises(VidpipeError, match="the same training is running already"),
    ):
        train.run(params, "linear_probe", workspace)
    found = client.search_runs([experiment])
    assert [(r.info.run_id, r.info.status) for r in found] == [(run.info.run_id, "RUNNING")]
