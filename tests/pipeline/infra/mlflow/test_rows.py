"""A row a model: its stages below it, numbers, data sets, pictures and the adapter as a logged model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from small_store import small_project
from tracking_server import TrackingServer
from tracking_store import copy_store

from pipeline.infra.mlflow import journal
from pipeline.infra.mlflow.server import server_at
from pipeline.infra.workspace import Workspace, folder_hash
from pipeline.stages import evaluate, export, train
from pipeline.tools import explain
from pipeline.tools.sync import sync
from vidpipe.errors import VidpipeError
from vidpipe.params import Params, TrackingConfig, load_params

METHODS = ("linear_probe", "aim")


def project(folder: Path, uri: str, **more: object) -> Params:
    if not (folder / "data").exists():
        small_project(folder, epochs=2)
    quick = {"export": {"formats": [], "parity_clips": 1}, "tracking": {"uri": uri}, **more}
    return load_params(folder / "params.yaml", [quick])


def all_stages(params: Params, method: str) -> None:
    for stage in (train, evaluate, export):
        stage.run(params, method, Workspace(Path.cwd()))


def by_stage(client: MlflowClient) -> dict[str, list[Run]]:
    experiment = client.get_experiment_by_name("vidpipe")
    found: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.data.tags["vidpipe.stage"], []).append(run)
    return found


# -- the rows -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, MlflowClient]]:
    """Two methods through all stages, one of them trained twice."""
    root = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        server_at.cache_clear()
        uri = f"sqlite:///{root}/mlflow.db"
        for method in METHODS:
            all_stages(project(root, uri), method)
        all_stages(project(root, uri, methods={"aim": {"lr": 1e-4}}), "aim")
        request = explain.Request(1, None, "val", False, None, -1, 0)
        explain.run(project(root, uri), "aim", Workspace(root), request)
        yield root, MlflowClient(uri)


def test_a_table_of_rows_compares_the_models(tracked: tuple[Path, MlflowClient]) -> None:
    root, client = tracked
    rows = by_stage(client)["model"]
    assert sorted(row.info.run_name for row in rows) == ["aim", "aim", "linear_probe"]
    assert {row.info.status for row in rows} == {"FINISHED"}
    wanted = {"top1", "top1_low", "top1_high", "tunable_m", "tunable_with_head_m", "gflops"}
    for row in rows:
        assert wanted | {"latency_ratio"} <= row.data.metrics.keys()
        assert not [key for key in row.data.metrics if key.startswith(("frozen", "reversed"))]
    rates = {row.data.params["lr"] for row in rows if row.data.params["method"] == "aim"}
    assert rates == {"0.005", "0.0001"}
    (last,) = (row for row in rows if row.data.params["lr"] == "0.0001")
    cost = json.loads((root / "results/aim/train.json").read_text())["cost"]
    result = json.loads((root / "results/aim/eval.json").read_text())
    assert last.data.metrics["tunable_m"] == pytest.approx(cost["tunable_without_head"] / 1e6)
    assert last.data.metrics["gflops"] == pytest.approx(cost["gmacs"])
    assert last.data.metrics["top1"] == pytest.approx(result["top1"])


def test_the_stages_stand_below_the_row(tracked: tuple[Path, MlflowClient]) -> None:
    _, client = tracked
    runs = by_stage(client)
    assert {stage: len(found) for stage, found in runs.items()} == {
        **{"model": 3, "train": 3, "evaluate": 3, "export": 3, "explain": 1},
    }
    for row in runs["model"]:
        below = {
            run.data.tags["vidpipe.stage"]
            for found in runs.values()
            for run in found
            if run.data.tags.get("mlflow.parentRunId") == row.info.run_id
        }
        assert {"train", "evaluate", "export"} <= below


def test_a_row_has_source_data_sets_and_a_description_with_pictures(
    tracked: tuple[Path, MlflowClient],
) -> None:
    root, client = tracked
    for row in by_stage(client)["model"]:
        tags = row.data.tags
        assert tags["mlflow.source.name"]
        assert tags["mlflow.source.type"] == "LOCAL"
        assert tags["vidpipe.registered_version"] in ("1", "2")
        inputs = {each.tags[0].value: each.dataset for each in row.inputs.dataset_inputs}
        assert inputs.keys() == {"training", "validation"}
        assert json.loads(inputs["training"].profile)["clips"] == 7
        assert json.loads(inputs["validation"].profile)["clips"] == 3
        assert inputs["training"].digest != inputs["validation"].digest
        note = tags["mlflow.note.content"]
        assert f"- top-1: {100 * row.data.metrics['top1']:.4g} % (95 %: " in note
        pictures = {file.path for file in client.list_artifacts(row.info.run_id, "pictures")}
        assert {"pictures/confusion.png", "pictures/calibration.png"} <= pictures
        for picture in pictures:
            if picture.endswith(".png"):
                assert f"get-artifact?path={picture}&run_uuid={row.info.run_id}" in note
    assert len(list((root / "models/aim/explanation").glob("*.png"))) == 1


def test_the_best_adapter_is_found_by_its_accuracy_and_opens(
    tracked: tuple[Path, MlflowClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, client = tracked
    experiment = client.get_experiment_by_name("vidpipe").experiment_id
    order = [{"field_name": "metrics.top1", "ascending": False}]
    found = client.search_logged_models([experiment], "metrics.top1 >= 0", order_by=order)
    assert sorted(model.name for model in found) == [
        "adapter-aim",
        "adapter-aim",
        "adapter-linear_probe",
    ]
    scores = [next(m.value for m in model.metrics if m.key == "top1") for model in found]
    assert scores == sorted(scores, reverse=True)
    for model in found:
        assert model.model_type == "vidpipe-adapter"
        assert {(m.dataset_name, len(m.dataset_digest)) for m in model.metrics} == {("synth", 16)}
    digest = folder_hash(root / "models/aim/adapter")
    (mine,) = client.search_logged_models([experiment], f"tags.`vidpipe.adapter` = '{digest}'")
    assert mine.params["lr"] == "0.0001"
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    local = mlflow.artifacts.download_artifacts(f"models:/{mine.model_id}", dst_path=str(tmp_path))
    assert folder_hash(Path(local)) == digest


def test_a_registered_version_has_tags_and_a_card(tracked: tuple[Path, MlflowClient]) -> None:
    root, client = tracked
    version = client.get_model_version_by_alias("vidpipe-aim", "candidate")
    assert str(version.version) == "2"
    assert version.tags["vidpipe.method"] == "aim"
    assert float(version.tags["vidpipe.top1"]) == pytest.approx(
        json.loads((root / "results/aim/eval.json").read_text())["top1"]
    )
    assert version.description.startswith("# Video classifier: aim on ")
    assert len(version.description) <= 5000


def test_the_same_again_changes_nothing(tracked: tuple[Path, MlflowClient]) -> None:
    root, client = tracked
    before = by_stage(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params = project(root, f"sqlite:///{root}/mlflow.db", methods={"aim": {"lr": 1e-4}})
        evaluate.run(params, "aim", Workspace(root))
    after = by_stage(client)
    assert {s: len(r) for s, r in before.items()} == {s: len(r) for s, r in after.items()}
    for run in after["evaluate"]:
        assert len(client.get_metric_history(run.info.run_id, "top1")) == 1


# -- without a server -----------------------------------------------------------------------------


def test_what_was_done_without_a_server_is_sent_by_sync(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server_at.cache_clear()
    store = copy_store(in_folder)
    server = TrackingServer(store)
    params = project(in_folder, server.uri)
    all_stages(params, "aim")
    said = capsys.readouterr().err
    assert said.count("`vidpipe sync` sends it") == 3
    assert len(journal.kept()) == 3
    with pytest.raises(
        VidpipeError, match=r"connection refused; 3 runs are kept in .vidpipe/unsent"
    ):
        sync()
    server.start()
    try:
        server_at.cache_clear()
        assert [line.split(":")[0] for line in sync()] == [
            "train aim",
            "evaluate aim",
            "export aim",
        ]
        assert sync() == []
    finally:
        server.kill()
    client = MlflowClient(f"sqlite:///{store}")
    runs = by_stage(client)
    (row,) = runs["model"]
    assert {"top1", "tunable_m", "latency_ratio"} <= row.data.metrics.keys()
    assert {run.info.status for found in runs.values() for run in found} == {"FINISHED"}
    (trained,) = runs["train"]
    history = client.get_metric_history(trained.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2]
    assert client.get_model_version_by_alias("vidpipe-aim", "candidate").version == 1
    assert client.search_logged_models([row.info.experiment_id], "metrics.top1 >= 0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not what a run left to send"),
        ('{"version": 9, "run": {}, "entries": []}', "version 9, expected 1"),
        (
            '{"version": 1, "run": {}, "entries": [{"kind": "rm", "values": {}}]}',
            "unknown entry 'rm'",
        ),
        ('{"version": 1, "run": {"x": 1}, "entries": []}', "not what a run left to send"),
    ],
)
def test_a_file_that_no_run_left_is_a_line(in_folder: Path, content: str, message: str) -> None:
    journal.FOLDER.mkdir(parents=True)
    (journal.FOLDER / "a.json").write_text(content)
    with pytest.raises(VidpipeError, match=message):
        sync()


# -- a real server --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_a_server_elsewhere_that_keeps_the_files_itself(in_folder: Path) -> None:
    """`mlflow server` as a team runs it: runs in its database, files by way of it (proxied)."""
    server_at.cache_clear()
    there = in_folder / "there"
    there.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{there}/mlflow.db", "--workers", "1"),
            *("--artifacts-destination", str(there / "files")),
        ],
        cwd=there,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        tracking = TrackingConfig(uri=uri)
        until = time.monotonic() + 180
        while not server_at(tracking.uri).answers():
            assert time.monotonic() < until
            time.sleep(1)
        all_stages(project(in_folder, uri), "linear_probe")
        client = MlflowClient(uri)
        runs = by_stage(client)
        (row,) = runs["model"]
        assert row.info.artifact_uri.startswith("mlflow-artifacts:")
        assert "top1" in row.data.metrics
        assert list(there.rglob("confusion.png"))
        assert not (in_folder / "mlruns").exists()
        assert not (in_folder / "mlartifacts").exists()
        mlflow.set_tracking_uri(uri)
        served = mlflow.pyfunc.load_model("models:/vidpipe-linear_probe@candidate")
        assert served.predict(served.input_example).labels[0]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
