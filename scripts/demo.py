"""The demo as a project of its own, so that the clone stays as it is on any processor.

    python scripts/demo.py build/demo

Runs `dvc repro` there with the clone's params.yaml and dvc.yaml, prints the table, and compares it with
the committed results. Run again, only what has changed is computed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidpipe.config.yaml_text import read_yaml_file

CLONE = Path(__file__).parents[1]
TOLERANCES = {"top1": 0.05, "in_pair_top1": 0.05, "reversed_top1": 0.05, "shuffled_top1": 0.15}
"""Of accuracies on 104 clips: processors round differently, and a training grows such differences. A
model has never seen shuffled frames, so that what it says of them turns on the least of these."""
COSTS = ("tunable", "new_at_inference", "gmacs")


def make_project(folder: Path, clone: Path = CLONE) -> None:
    """A project in `folder` with the clone's settings; what was computed there before stays."""
    weights = read_yaml_file(clone / "params.yaml")["backbone"]["weights"]
    for name in ("params.yaml", "dvc.yaml", ".dvcignore", weights):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clone / name, target)
    if not (folder / ".dvc").is_dir():
        # No part of the clone's git: that would ask for each output to be ignored there.
        subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)


def differences(project: Path, clone: Path = CLONE) -> Iterator[str]:
    """A line for each number of `project` that is not the committed one, within TOLERANCES."""
    for method in sorted(path.parent.name for path in project.glob("results/*/eval.json")):
        committed = clone / "results" / method
        if not (committed / "eval.json").is_file():
            yield f"{method}: no committed results"
            continue
        (own, own_cost), (old, old_cost) = (
            (_read(place / "eval.json"), _read(place / "train.json")["cost"])
            for place in (project / "results" / method, committed)
        )
        for key, tolerance in TOLERANCES.items():
            if key in old and abs(own[key] - old[key]) > tolerance:
                yield f"{method}: {key} is {own[key]:.1%}, committed {old[key]:.1%}"
        for key in COSTS:
            if own_cost[key] != old_cost[key]:
                yield f"{method}: {key} is {own_cost[key]}, committed {old_cost[key]}"


def same_settings(project: Path, clone: Path = CLONE) -> bool:
    """Whether both ran with the same parameters, method by method."""
    own, old = ({k: v.get("params") for k, v in _stages(f).items()} for f in (project, clone))
    return all(old.get(stage) == params for stage, params in own.items())


def same_clips(project: Path, clone: Path = CLONE) -> bool:
    own, old = (_stages(folder)["synth"]["outs"][0]["md5"] for folder in (project, clone))
    return bool(own == old)


def _stages(folder: Path) -> dict[str, Any]:
    stages: dict[str, Any] = read_yaml_file(folder / "dvc.lock")["stages"]
    return stages


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def compared(project: Path, clone: Path = CLONE) -> str:
    """What is said of the results beside those in git."""
    if not same_settings(project, clone):
        return "not compared with the committed results/: params.yaml is another"
    found = list(differences(project, clone))
    clips = "the same clips" if same_clips(project, clone) else "clips of other bytes"
    if found:
        return f"NOT as committed in results/, on {clips}:\n  " + "\n  ".join(found)
    return (
        f"as committed in results/, on {clips}: accuracies within {100 * TOLERANCES['top1']:.0f} points "
        f"({100 * TOLERANCES['shuffled_top1']:.0f} of shuffled frames), parameters and GFLOPs equal"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    make_project(folder)
    # A line a stage; tables, which stages print on standard output, once in the end.
    env = os.environ | {"VIDPIPE_BRIEF": "1"}
    done = subprocess.run(
        ["dvc", "repro", "--quiet"], cwd=folder, env=env, stdout=subprocess.DEVNULL
    ).returncode
    if done:
        return done
    subprocess.run(["vidpipe", "report"], cwd=folder, check=True)
    print(f"\n{compared(folder)}\n", flush=True)
    print(f"next: cd {folder}; what follows is said from there")
    print("      results/report.html    every table and picture")
    print("      mlflow ui --backend-store-uri sqlite:///mlflow.db    the trainings; also: make ui")
    print("      vidpipe demo --model models/aim/package    drop a video, see what the model says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
