"""Trainings killed at any moment, stopped by signals, and run again: the same bits, one clean run."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from project import HELPERS, PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
KILLS = int(os.environ.get("VIDPIPE_KILLS", "4"))


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    dropped = ("MLFLOW_TRACKING", "VIDPIPE_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return env | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_kill_9_of_the_engine_inside_checkpoints_steps_and_validations(tmp_path: Path) -> None:
    """In forked children, so that a kill costs a second: ten at least, since each of the four kinds has
    up to three before the next one's turn. VIDPIPE_KILLS asks for more."""
    command = [sys.executable, str(HELPERS / "training_victim.py"), str(tmp_path)]
    kills = max(10, KILLS)
    done = subprocess.run(
        [*command, str(kills), "0"], capture_output=True, text=True, env=environment(), timeout=1400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sum(row["deaths"] for row in rows) >= kills
    for where in ("disk", "tensors", "step", "validation"):
        assert any(row["deaths"] for row in rows if row["where"] == where), where
    assert all(row["same"] and not row["left"] for row in rows), rows


# -- the command itself ---------------------------------------------------------------------------

TINY = (
    *("synth.pairs=[horizontal]", "synth.clips_per_class=12", "train.epochs=24"),
    *("evaluate.reversed_pairs=[]", "train.warmup_epochs=1", "train.eval_every=3"),
    *("train.batch_size=4", "train.threads=1", "train.memory_gb_per_worker=0.5"),
    *("train.checkpoint_every=3", "methods.st_adapter.head_dropout=0.2", "train.ema_decay=0.9"),
)


def vidpipe(folder: Path, *command: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli.app", *command]


def call(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(
        vidpipe(folder, *command), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        vidpipe(folder, "train", "--method", "st_adapter"),
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def results(folder: Path) -> dict[str, bytes]:
    names = ("adapter/adapter.safetensors", "adapter/config.json")
    files = [folder / "models" / "st_adapter" / name for name in names]
    files += [folder / "results" / "st_adapter" / name for name in ("history.csv", "train.json")]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an extracted store, and in `whole/` the results of a training that ran through."""
    folder = tmp_path_factory.mktemp("kills") / "project"
    (folder / "src" / "vidpipe").mkdir(parents=True)
    (folder / "src" / "vidpipe" / "assets").symlink_to(PROJECT / "src" / "vidpipe" / "assets")
    (folder / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    call(folder, "params", "--write", *(part for text in TINY for part in ("--set", text)))
    call(folder, "synth")
    call(folder, "extract")
    whole = with_data(folder, folder / "whole")
    call(whole, "train", "--method", "st_adapter")
    return folder


def with_data(data: Path, folder: Path) -> Path:
    """A project of its own that shares the data."""
    folder.mkdir()
    for name in ("src", "data", "params.yaml"):
        (folder / name).symlink_to(data / name)
    return folder


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("ray/st_adapter-*/checkpoints/[0-9]*"))


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if what():
            return True
        time.sleep(0.001)
    return False


def validating(folder: Path, epochs: int) -> bool:
    """The checkpoint before a validation is there, and the one after it is not."""
    last = checkpoints(folder)[-1:]
    step, epoch = (int(part) for part in last[0].name.split("-")) if last else (0, 0)
    return step > 0 and step % 12 == 0 and epoch < step / 4 and epoch >= epochs


def assert_one_clean_run(folder: Path, data: Path) -> None:
    from mlflow.tracking import MlflowClient

    def curves(root: Path) -> tuple[dict[str, object], dict[str, list[object]]]:
        client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
        experiment = client.get_experiment_by_name("vidpipe")
        query = "tags.`vidpipe.stage` = 'train'"
        runs = client.search_runs([experiment.experiment_id], query)
        assert [r.info.status for r in runs] == ["FINISHED"]
        names = ("train_loss", "train_top1", "val_loss", "val_top1", "lr", "grad_norm", "data_wait")
        histories = {n: client.get_metric_history(runs[0].info.run_id, n) for n in names}
        values = {n: [(m.step, m.value) for m in h] for n, h in histories.items()}
        steps = {n: [m.step for m in h] for n, h in histories.items()}
        return {n: v for n, v in values.items() if n != "data_wait"}, steps

    assert curves(folder) == curves(data / "whole")
    with sqlite3.connect(folder / "mlflow.db") as store:
        twice = "select 1 from metrics group by run_uuid, key, step having count(*) > 1"
        assert not store.execute(twice).fetchall()


@pytest.mark.long
def test_kill_9_of_the_command(data: Path, tmp_path: Path) -> None:
    """VIDPIPE_KILLS sets how many; the whole process group dies."""
    folder, moments = with_data(data, tmp_path / "killed"), random.Random(0)
    moment = ("writing", "validating", "anywhere", "starting")
    killed = 0
    for kill in range(KILLS):
        process, before = start(folder), len(checkpoints(folder))
        where = moment[kill % len(moment)]
        if where == "writing":
            wait_for(lambda: list(folder.glob("ray/*/checkpoints/.*")), process, 200)
        elif where == "validating":
            epochs = int(checkpoints(folder)[-1].name[-4:]) + 1 if before else 1
            wait_for(lambda: validating(folder, epochs), process, 200)  # noqa: B023
        elif where == "anywhere":
            last = checkpoints(folder)[-1:]
            wait_for(lambda: checkpoints(folder)[-1:] != last, process, 200)  # noqa: B023
            time.sleep(moments.uniform(0, 1))
        else:
            time.sleep(moments.uniform(1, 8))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    call(folder, "train", "--method", "st_adapter")
    assert killed >= min(2, KILLS)
    assert results(folder) == results(data / "whole")
    assert not list((folder / "ray").iterdir())
    assert_one_clean_run(folder, data)
    again = call(folder, "train", "--method", "st_adapter")
    assert "this very training is finished, nothing to do" in again
    assert "next: vidpipe evaluate --method st_adapter" in again
    assert_one_clean_run(folder, data)


@pytest.mark.long
def test_signals_save_and_leave_and_a_changed_config_starts_anew(
    data: Path, tmp_path: Path
) -> None:
    folder = with_data(data, tmp_path / "stopped")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process, before = start(folder), checkpoints(folder)[-1:]
        assert wait_for(lambda: checkpoints(folder)[-1:] != before, process, 400)  # noqa: B023
        process.send_signal(number)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert time.monotonic() - begun < 30  # 10 s by themselves; here others use the machine
        assert "run the same command again to go on" in errors.splitlines()[-1]
        assert str(checkpoints(folder)[-1]) in errors.splitlines()[-1]
    other = call(folder, "train", "--method", "st_adapter", "--set", "train.epochs=2")
    assert "goes on after" not in other
    assert len(pd.read_csv(folder / "results/st_adapter/history.csv")) == 2
    resumed = call(folder, "train", "--method", "st_adapter")
    assert "goes on after step" in resumed
    assert results(folder) == results(data / "whole")
