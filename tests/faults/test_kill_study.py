"""`vidpipe study`, killed at random and run again: the same tables, to the byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_store import small_project

STUDY = {
    "name": "killed",
    "methods": ["linear_probe", "st_adapter"],
    "spaces": {"st_adapter": {"lr": "loguniform(1e-4,1e-2)"}},
    "folds": 2,
    "trials": 3,
    "fractions": [0.5, 1.0],
    "inner_fraction": 0.4,
}
COMMAND = (sys.executable, "-m", "pipeline.cli.app", "study")


def project(folder: Path) -> Path:
    folder.mkdir()
    small_project(folder, 12, epochs=3)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(raw | {"study": STUDY}))
    return folder


def results(folder: Path) -> dict[str, bytes]:
    found = folder / "results" / "studies" / "killed"
    return {file.name: file.read_bytes() for file in sorted(found.iterdir())}


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_three_kills_at_random_leave_the_same_tables(tmp_path: Path, how: signal.Signals) -> None:
    straight, killed = project(tmp_path / "straight"), project(tmp_path / "killed")
    started = time.monotonic()
    subprocess.run(COMMAND, cwd=straight, check=True, capture_output=True)
    whole = time.monotonic() - started
    draw = random.Random(0)
    for _ in range(3):
        first = subprocess.Popen(
            COMMAND,
            cwd=killed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(whole * draw.uniform(0.3, 0.8))
        if first.poll() is None:
            os.killpg(first.pid, how)
        first.wait()
    subprocess.run(COMMAND, cwd=killed, check=True, capture_output=True)
    assert results(killed) == results(straight)
