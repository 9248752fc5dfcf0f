"""What `vidpipe evaluate` leaves to `compare`, `splits`, `report` and `export`, and its mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project import command
from small_store import small_project


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    small_project(folder, epochs=1, warmup_epochs=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("aim", "linear_probe"):
            for stage in ("train", "evaluate"):
                assert command(patch, stage, "--method", method) == 0
    return folder


def test_an_evaluation_leaves_what_a_comparison_needs(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(evaluated)
    for name in ("predictions.parquet", "confusion.png", "calibration.png", "config.json"):
        assert (evaluated / "models" / "aim" / "evaluation" / name).stat().st_size > 100
    assert command(monkeypatch, "compare", "linear_probe", f"{evaluated}:aim") == 0
    shown = capsys.readouterr()
    assert "McNemar" not in shown.out
    assert "mean_class_accuracy" in shown.out
    (folder,) = (evaluated / "results" / "compare").iterdir()
    assert {p.name for p in folder.iterdir()} == {
        *("metrics.csv", "per_class.csv", "per_class.png", "compare.html")
    }
    page = (folder / "compare.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_run_is_found_again_in_mlflow(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(evaluated)
    client = MlflowClient(tracking_uri=f"sqlite:///{evaluated}/mlflow.db")
    experiment = client.get_experiment_by_name("vidpipe")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`vidpipe.stage` = 'evaluate'")
    ids = [run.info.run_id for run in found]
    assert len(ids) == 2
    assert command(monkeypatch, "compare", *ids) == 0
    assert "mean_class_accuracy" in capsys.readouterr().out
    assert command(monkeypatch, "compare", "0" * 32, ids[0]) == 1
    assert "MLflow at sqlite" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "aim", "st_adapter"), "st_adapter: no evaluation found"),
        (("splits", "aim", "aim"), "aim and aim were evaluated on the same clips"),
        (("evaluate", "--method", "aim", "--set", "evaluate.temporal_clips=2"), "strategy dense"),
        (("evaluate", "--method", "aim", "--set", "train.use_gpu=yes"), "no usable GPU"),
    ],
)
def test_mistakes_are_one_line(
    evaluated: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(evaluated)
    assert command(monkeypatch, *words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("stage", ["evaluate", "export"])
def test_an_adapter_of_other_classes_than_the_data_is_refused(
    evaluated: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(evaluated)
    config = evaluated / "models" / "aim" / "adapter" / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps({**json.loads(whole), "classes": ["a", "c"]}))
    try:
        assert command(monkeypatch, stage, "--method", "aim") == 1
    finally:
        config.write_text(whole)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "models/aim/adapter has 2 classes and data/store has 2" in line
    assert "'c' and 'b' at 1" in line


def test_the_report_is_one_page(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(evaluated)
    assert command(monkeypatch, "report") == 0
    folder = evaluated / "results" / "report"
    assert {p.name for p in folder.iterdir()} == {
        *("accuracy.csv", "use_of_time.csv", "per_class.csv", "training.png", "per_class.png"),
        *("accuracy_against_parameters.png", "accuracy_against_gflops.png", "use_of_time.png"),
    }
    page = (evaluated / "results" / "report.html").read_text()
    assert page.count("<img") == 5
    assert "lost by shuffling" in page
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert command(monkeypatch, "report") == 0
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_stages_of_one_process_log_where_their_own_folder_says(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow keeps the last store in the environment; the next stage must not take it for a wish."""
    monkeypatch.chdir(evaluated)
    assert command(monkeypatch, "export", "--method", "aim", "--set", "export.formats=[]") == 0
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_ray_workers_predict_as_one_process_does(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real Ray actors; three clips in batches of two, so that a padded batch would show."""
    import shutil

    out = tmp_path / "out"
    shutil.copytree(evaluated / "models" / "aim" / "adapter", out / "models" / "aim" / "adapter")
    shutil.copytree(evaluated / "data" / "store", out / "data" / "store")
    monkeypatch.chdir(evaluated)
    options = ("--set", "evaluate.batch_size=2", "--method", "aim", "--out", str(out))
    tables = []
    for workers in (0, 2):
        assert (
            command(monkeypatch, "evaluate", *options, "--set", f"evaluate.num_workers={workers}")
            == 0
        )
        tables.append(
            pd.read_parquet(out / "models" / "aim" / "evaluation" / "predictions.parquet")
        )
    one, two = tables
    assert len(two) == 3
    assert one.id.tolist() == two.id.tolist()
    np.testing.assert_array_equal(np.stack(one.probabilities), np.stack(two.probabilities))
