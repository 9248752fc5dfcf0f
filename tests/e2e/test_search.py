"""Grids by DVC: `dvc exp run -S` changes params for one experiment, and its results can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_project import Run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SHORT = ("-S", "train.epochs=1", "-S", "train.warmup_epochs=0")
KEY = "methods.zeroi2v.lr"


@pytest.fixture
def restored(run: Run) -> Iterator[None]:
    """The other tests of this project find it as it was."""
    yield
    run("dvc", "exp", "remove", "--all-commits", check=False)
    run("git", "checkout", "-q", ".")
    run("dvc", "checkout", "-q")


def experiments(run: Run) -> list[dict[str, Any]]:
    """lr and loss of every experiment, as `dvc exp show` has them."""
    (shown,) = json.loads(run("dvc", "exp", "show", "--json").stdout)[1:]
    found = []
    for experiment in shown["experiments"] or []:
        data = experiment["revs"][0]["data"]
        params = data["params"]["params.yaml"]["data"]
        metrics = data["metrics"]["results/zeroi2v/train.json"]["data"]
        lr = params["methods"]["zeroi2v"]["lr"]
        found.append(metrics | {"lr": float(lr), "epochs": params["train"]["epochs"]})
    return sorted(found, key=lambda one: one["lr"])


def test_an_experiment_changes_params_and_reruns_one_stage(
    project: Path, run: Run, restored: None
) -> None:
    comments = (project / "params.yaml").read_text().count("#")
    done = run("dvc", "exp", "run", *SHORT, "-S", f"{KEY}=0.002", "train@zeroi2v")
    assert re.findall(r"Running stage '([^']+)'", done.stdout) == ["train@zeroi2v"]
    (found,) = experiments(run)
    assert (found["lr"], found["epochs"]) == (0.002, 1)
    assert (project / "params.yaml").read_text().count("#") == comments
    assert len((project / "results/zeroi2v/history.csv").read_text().splitlines()) == 2


def test_a_grid_is_queued_and_run(project: Path, run: Run, restored: None) -> None:
    grid = f"{KEY}=0.0001,0.1"
    queued = run("dvc", "exp", "run", "--queue", *SHORT, "-S", grid, "train@zeroi2v")
    assert queued.stdout.count("Queued experiment") == 2
    run("dvc", "exp", "run", "--run-all")
    low, high = experiments(run)
    assert (low["lr"], high["lr"]) == (0.0001, 0.1)
    assert low["train_loss"] != high["train_loss"]
    assert run("git", "status", "--porcelain").stdout == "", "the workspace is left alone"
