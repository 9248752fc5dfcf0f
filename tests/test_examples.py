"""The scripts in examples/, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from project import PROJECT

EXAMPLES = PROJECT / "examples"


def run(script: str, folder: Path, *arguments: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(folder.iterdir()), "an example leaves nothing behind"
    return done.stdout.splitlines()


def test_there_is_a_test_of_each() -> None:
    assert {file.name for file in EXAMPLES.iterdir()} == {"own_loop.py", "own_data.py"}


def test_a_loop_of_ones_own_learns(tmp_path: Path) -> None:
    *_, last = run("own_loop.py", tmp_path)
    right, _, of, *_ = last.split()
    assert int(right) >= 14, last
    assert of == "16"


def test_videos_of_ones_own_are_learned_saved_loaded_and_predicted(tmp_path: Path) -> None:
    lines = run("own_data.py", tmp_path)
    predicted = [line for line in lines if ".mp4: " in line]
    assert len(predicted) == 5
    right = [
        line for line in predicted if f"label='{line.partition('/')[0]}'" in line.split(",")[0]
    ]
    assert len(right) >= 4, predicted
