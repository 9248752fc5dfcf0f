"""A project of its own, with tiny parameters, run by the real tools through DVC once a session.

Stages run as commands where the process matters (DVC, Ray), else in this process: each start of the
command imports PyTorch, MLflow and more, which takes longer than the stage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from project import PROJECT

Run = Callable[..., subprocess.CompletedProcess[str]]

METHODS = ("zeroi2v",)
"""Not all of the demo's: `make demo` runs them, and each stage takes a process that imports all anew.
tests/pipeline/test_dvc.py has DVC choose between methods."""
TINY = [
    f"pipeline.methods=[{','.join(METHODS)}]",
    "synth.pairs=[horizontal]",
    "synth.clips_per_class=12",
    "evaluate.reversed_pairs=[[move_left,move_right]]",
    "train.epochs=2",
    "train.warmup_epochs=1",
    "train.eval_every=1",
    "train.batch_size=4",
    "train.threads=1",
    "train.memory_gb_per_worker=0.5",
    "export.parity_clips=4",
]


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "DVC_"))}
    tools = Path(sys.executable).parent
    return env | {
        "PATH": f"{tools}{os.pathsep}{env['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{
            f"GIT_{who}_{what}": "t@t"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }


def run_in(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=1500
    )
    if check:
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def copy_project(folder: Path) -> None:
    """The tracked files as they are in the working tree, as a new git repository."""
    listed = run_in(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.stdout.split("\n"):
        source = PROJECT / name
        if name and source.is_file() and name != "dvc.lock" and not name.startswith("results/"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    run_in(folder, "git", "init", "-q", "-b", "main")
    overrides = [part for text in TINY for part in ("--set", text)]
    run_in(folder, "vidpipe", "params", "--write", *overrides)
    run_in(folder, "git", "add", "-A")
    run_in(folder, "git", "commit", "-qm", "start")
