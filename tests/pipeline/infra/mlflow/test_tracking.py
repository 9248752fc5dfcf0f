"""Tracking: a store made once, one run a training, and no outage of MLflow that ends one."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from small_store import small_project
from tracking_server import TrackingServer
from tracking_store import copy_store

from pipeline.infra.locks import locked
from pipeline.infra.mlflow import sqlite_store
from pipeline.infra.mlflow.server import server_at
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.ray.tune import NestedRuns
from pipeline.infra.workspace import Workspace, training_hash
from pipeline.stages import evaluate, export, train
from vidpipe.errors import VidpipeError
from vidpipe.new_model import new_model
from vidpipe.params import Params, TrackingConfig, load_params
from vidpipe.training.loop import Trainer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return copy_store(tmp_path)


@pytest.fixture
def server(store: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(store)
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _as_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what is not sent lies there
    server_at.cache_clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # this machine may be busy


def config(uri: str, required: bool = True) -> TrackingConfig:
    return TrackingConfig(uri=uri, required=required)


def runs(store: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("vidpipe")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def of_stage(store: Path, stage: str) -> list[Run]:
    return [run for run in runs(store) if run.data.tags["vidpipe.stage"] == stage]


def steps(store: Path, run: Run, key: str) -> list[tuple[int, float]]:
    history = MlflowClient(f"sqlite:///{store}").get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


# -- a store in one file --------------------------------------------------------------------------


def test_commands_that_find_no_store_make_one_between_them(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.new").write_bytes(b"half a store, which a kill has left")
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)

    def command(number: int) -> None:
        together.wait()
        with tracked_run(config(f"sqlite:///{tmp_path}/mlflow.db"), "train", f"m{number}", "0"):
            pass

    commands = [context.Process(target=command, args=(i,)) for i in range(3)]
    for process in commands:
        process.start()
    for process in commands:
        process.join()
    assert [process.exitcode for process in commands] == [0, 0, 0]
    found = runs(tmp_path / "mlflow.db")
    assert {run.data.tags["vidpipe.method"] for run in found} == {"m0", "m1", "m2"}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nosuch://x", "MLFLOW_TRACKING_URI: nosuch://x: .*unsupported URI"),
        ("folder", "MLFLOW_TRACKING_URI: folder: The filesystem tracking backend"),
        (
            "sqlite:///folder",
            "MLFLOW_TRACKING_URI: sqlite:.*/folder: a folder; a tracking store is one file",
        ),
        ("sqlite:///text", "MLFLOW_TRACKING_URI: sqlite:.*/text: not a readable SQLite database"),
        ("sqlite:///text/x.db", "MLflow at sqlite:.*/text/x.db: .*File exists"),
        ("sqlite:////proc/nosuch/x.db", "MLflow at sqlite:.*: .*No such file or directory"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"MLflow at postgresql://me:\*\*\*@127.0.0.1"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    uri: str,
    message: str,
    in_folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (in_folder / "folder").mkdir()
    (in_folder / "text").write_text("no database, but a text of some length" * 9)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with (
        pytest.raises(VidpipeError, match=message) as refused,
        tracked_run(TrackingConfig(required=True), "a", "b", "c"),
    ):
        pytest.fail("there is nothing to log to")
    assert len(str(refused.value).splitlines()) == 1
    assert not caplog.records  # MLflow's own, with tracebacks


def test_a_store_that_another_process_keeps_locked_is_one_line(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_S", 0.1)
    with closing(sqlite3.connect(store)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(VidpipeError, match=r"mlflow\.db: database is locked; start it, or"),
            tracked_run(config(f"sqlite:///{store}"), "a", "b", "c"),
        ):
            pytest.fail("tracking is required")
        with tracked_run(config(f"sqlite:///{store}", required=False), "a", "b", "c") as run:
            assert run.run_id is None


# -- outages --------------------------------------------------------------------------------------


def test_nobody_there_is_said_at_once_and_no_patience_is_left_in_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    before = dict(os.environ)
    with (
        pytest.raises(VidpipeError, match=r"MLflow at http://127.0.0.1:9: connection refused; "),
        tracked_run(config("http://127.0.0.1:9"), "a", "b", "c"),
    ):
        pytest.fail("tracking is required")
    done = []
    with tracked_run(config("http://127.0.0.1:9", required=False), "a", "b", "c") as run:
        run.metrics({"loss": 1.0}, 1)
        run.params({"lr": 1})
        run.artifact(Path(__file__))
        done.append(run.run_id)
    assert done == [None]
    assert dict(os.environ) == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith(
        "warning: MLflow at http://127.0.0.1:9: connection refused; going on"
    )
    assert "the results of a are written, but MLflow lacks part of this run" in lines[1]
    assert lines[1].endswith("; `vidpipe sync` sends it")


def test_a_server_that_never_answers_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(VidpipeError, match="timed out; start it, or"),
            tracked_run(config(uri), "a", "b", "c"),
        ):
            pytest.fail("tracking is required")
        silent.setblocking(False)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_an_outage_costs_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, clock = [], [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def slow(client: Any) -> None:
        asked.append(clock[0])
        clock[0] += 5  # seconds, until nobody has answered

    server = server_at("http://127.0.0.1:9")
    monkeypatch.setattr(server, "_connected", lambda: slow(None) or 1 / 0)
    run = TrackedRun("http://127.0.0.1:9", "e", "a", "b", "c")
    for epoch in range(100):
        run.metrics({"loss": 1.0}, epoch)
        clock[0] += 10
    assert 3 <= len(asked) <= 12


@pytest.mark.parametrize("required", [True, False])
def test_what_an_outage_kept_back_is_logged_after_it_once(
    server: TrackingServer,
    store: Path,
    required: bool,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "file.txt").write_text("kept back, too")
    with tracked_run(config(server.uri, required), "train", "m", "0") as run:
        run.metrics({"loss": 1.0}, 1)
        server.kill()
        run.params({"lr": 0.1})
        run.metrics({"loss": 2.0, "top1": 0.5}, 2)
        run.metrics({"loss": 3.0}, 3)
        server.start()
        run.server._next_try = 0.0  # the share of time is another test's
        run.metrics({"loss": 4.0}, 4)
        server.kill()
        run.metrics({"loss": 5.0}, 5)
        run.metrics({"loss": 1.0}, 1)  # again, as a training that goes on does
        server.start()
    (found,) = runs(store)
    assert found.info.status == "FINISHED"
    assert steps(store, found, "loss") == [(i, float(i)) for i in range(1, 6)]
    assert steps(store, found, "top1") == [(2, 0.5)]
    assert found.data.params == {"lr": "0.1"}
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning") for line in said] == [True, False, True, False], said


def test_a_server_that_comes_late_gets_all(server: TrackingServer, store: Path) -> None:
    server.kill()
    with tracked_run(config(server.uri, required=False), "train", "m", "0") as run:
        assert run.run_id is None
        run.metrics({"loss": 1.0}, 1)
        in_a_worker = TrackedRun(**{k: getattr(run, k) for k in run.__dataclass_fields__})
        server.start()
        in_a_worker.server._next_try = 0.0
        in_a_worker.metrics({"loss": 2.0}, 2)
    (found,) = runs(store)
    assert steps(store, found, "loss") == [(1, 1.0), (2, 2.0)]
    assert found.data.tags["vidpipe.version"]


def test_what_the_server_refuses_holds_nothing_else_back(
    server: TrackingServer, store: Path
) -> None:
    context = tracked_run(config(server.uri), "train", "m", "0")
    run = context.__enter__()
    run.artifact(Path("nosuch.txt"))
    run.metrics({"loss": 1.0}, 1)
    with pytest.raises(VidpipeError, match=r"nosuch\.txt.*lacks part of this run; `vidpipe sync`"):
        context.__exit__(None, None, None)
    (found,) = runs(store)
    assert found.info.status == "FINISHED"
    assert steps(store, found, "loss") == [(1, 1.0)]


# -- trainings ------------------------------------------------------------------------------------


def project(folder: Path, tracking: TrackingConfig, **options: object) -> Params:
    small_project(folder, **options)
    return load_params(folder / "params.yaml").model_copy(update={"tracking": tracking})


def test_a_training_outlives_its_tracking_server_and_tells_it_all_in_the_end(
    in_folder: Path, server: TrackingServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = project(in_folder, config(server.uri)), Workspace(in_folder)
    after_epoch(monkeypatch, {2: server.kill})
    with pytest.raises(VidpipeError, match="connection refused; the results of train are written"):
        train.run(params, "linear_probe", workspace)
    assert (workspace.adapter("linear_probe") / "adapter.safetensors").exists()
    result = workspace.result("linear_probe", "train.json").read_bytes()
    server.start()
    train.run(params, "linear_probe", workspace)  # trains nothing: its state is finished
    assert workspace.result("linear_probe", "train.json").read_bytes() == result
    (found,) = of_stage(store, "train")
    assert found.info.status == "FINISHED"
    assert [step for step, _ in steps(store, found, "train_loss")] == [1, 2, 3, 4]
    assert steps(store, found, "train_loss")[-1][1] == pytest.approx(
        json.loads(result)["train_loss"]
    )
    assert not list(workspace.ray.iterdir())


def after_epoch(monkeypatch: pytest.MonkeyPatch, events: dict[int, Callable[[], None]]) -> None:
    end_epoch = Trainer._end_epoch

    def then(self: Trainer, timing: Any) -> Any:
        ended = end_epoch(self, timing)
        events.get(self.progress.epoch, lambda: None)()
        return ended

    monkeypatch.setattr(Trainer, "_end_epoch", then)


def test_no_stage_needs_tracking(in_folder: Path) -> None:
    params = project(in_folder, config("http://127.0.0.1:9", required=False))
    for stage in (train, evaluate, export):
        stage.run(params, "linear_probe", Workspace(in_folder))
    for left in ("models/{}/adapter/config.json", "results/{}/history.csv", "results/{}/eval.json"):
        assert (in_folder / left.format("linear_probe")).exists()
    assert (in_folder / "models" / "linear_probe" / "package" / "parity.json").exists()
    assert not list((in_folder / "ray").iterdir())


def test_an_evaluation_is_written_before_it_is_said_that_mlflow_lacks_it(
    in_folder: Path, server: TrackingServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, workspace = project(in_folder, config(server.uri)), Workspace(in_folder)
    train.run(params, "linear_probe", workspace)
    with monkeypatch.context() as patch:
        predict = evaluate.predict

        def then_it_dies(*args: Any, **options: Any) -> Any:
            server.kill()
            return predict(*args, **options)

        patch.setattr(evaluate, "predict", then_it_dies)
        with pytest.raises(VidpipeError, match="the results of evaluate are written"):
            evaluate.run(params, "linear_probe", workspace)
    result = json.loads(workspace.result("linear_probe", "eval.json").read_text())
    server.start()
    evaluate.run(params, "linear_probe", workspace)
    (found,) = of_stage(store, "evaluate")
    assert found.info.status == "FINISHED"
    assert found.data.metrics["top1"] == result["top1"]
    logged = MlflowClient(f"sqlite:///{store}").list_artifacts(found.info.run_id, "evaluation")
    assert "evaluation/predictions.parquet" in [file.path for file in logged]


def test_trials_of_a_search_outlive_the_server(server: TrackingServer, store: Path) -> None:
    search = tracked_run(config(server.uri), "tune", "m", "0")
    parent = search.__enter__()
    nested = NestedRuns(config(server.uri), "m", "0", parent.run_id)
    trials = [
        SimpleNamespace(
            trial_id=f"t{i}",
            experiment_tag=f"{i}_x",
            config={"train.lr": 0.1 * i},
            last_result={"epoch": 2, "val_top1": 0.5},
        )
        for i in (1, 2)
    ]
    nested.on_trial_start(0, trials, trials[0])
    nested.on_trial_result(0, trials, trials[0], {"epoch": 1, "val_top1": 0.4})
    server.kill()
    nested.on_trial_result(0, trials, trials[0], {"epoch": 2, "val_top1": 0.5})
    nested.on_trial_start(0, trials, trials[1])  # in the outage
    nested.on_trial_result(0, trials, trials[1], {"epoch": 1, "val_top1": 0.3})
    server.start()
    for trial in trials:
        nested.on_trial_complete(0, trials, trial)
    search.__exit__(None, None, None)
    found = sorted(runs(store), key=lambda r: r.data.tags.get("vidpipe.trial", ""))
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    assert [steps(store, run, "val_top1") for run in found] == [
        [],
        [(1, 0.4), (2, 0.5)],
        [(1, 0.3)],
    ]
    assert {run.data.tags.get("mlflow.parentRunId") for run in found[1:]} == {parent.run_id}


def test_a_second_command_of_a_running_training_leaves_its_run_alone(
    in_folder: Path, store: Path
) -> None:
    params, workspace = project(in_folder, config(f"sqlite:///{store}")), Workspace(in_folder)
    weights = new_model(params, "linear_probe", ["a", "b"]).backbone.sha256
    identity = training_hash(params, "linear_probe", workspace, weights)
    first = TrackedRun(f"sqlite:///{store}", "vidpipe", "train", "linear_probe", identity)
    first.find()
    with (
        locked(workspace.ray / f"linear_probe-{identity}"),
        pytest.raises(VidpipeError, match="the same training is running already"),
    ):
        train.run(params, "linear_probe", workspace)
    assert [(r.info.run_id, r.info.status) for r in runs(store)] == [(first.run_id, "RUNNING")]
