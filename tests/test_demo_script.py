"""scripts/demo.py: a project beside the clone, and its results beside the committed ones."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from project import PROJECT


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_script", PROJECT / "scripts" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A project that ran and found what is committed."""
    for file in PROJECT.glob("results/*/*.json"):
        target = tmp_path / file.relative_to(PROJECT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    shutil.copyfile(PROJECT / "dvc.lock", tmp_path / "dvc.lock")
    return tmp_path


def change(file: Path, **values: Any) -> None:
    found = json.loads(file.read_text())
    for key, value in values.items():
        if key in found.get("cost", {}):
            found["cost"][key] = value
        else:
            assert key in found
            found[key] = value
    file.write_text(json.dumps(found))


def test_it_has_the_clones_settings_and_is_no_part_of_its_repository(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    project = tmp_path / "demo"
    demo.make_project(project)
    (project / "dvc.lock").write_text("kept")
    demo.make_project(project)
    assert (project / "dvc.lock").read_text() == "kept", "so that only what changed runs again"
    for name in ("params.yaml", "dvc.yaml", "src/vidpipe/assets/vit_still.safetensors"):
        assert (project / name).read_bytes() == (PROJECT / name).read_bytes()
    assert "no_scm = True" in (project / ".dvc" / "config").read_text()


def test_results_within_the_tolerance_are_as_committed(demo: ModuleType, done: Path) -> None:
    assert demo.compared(done).startswith("as committed in results/, on the same clips: ")
    shuffled = json.loads((done / "results/zeroi2v/eval.json").read_text())["shuffled_top1"]
    change(done / "results/zeroi2v/eval.json", top1=0.96, shuffled_top1=shuffled + 0.14)
    assert demo.compared(done).startswith("as committed")
    lock = yaml.safe_load((done / "dvc.lock").read_text())
    lock["stages"]["synth"]["outs"][0]["md5"] = "0.dir"
    (done / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert demo.compared(done).startswith("as committed in results/, on clips of other bytes: ")


def test_each_deviation_is_a_line(demo: ModuleType, done: Path) -> None:
    change(done / "results/zeroi2v/eval.json", top1=0.94, in_pair_top1=0.5, shuffled_top1=0.9)
    change(done / "results/aim/train.json", tunable=7)
    said = demo.compared(done).splitlines()
    assert said[0].startswith("NOT as committed")
    assert [line.split()[:3] for line in said[1:]] == [
        ["aim:", "tunable", "is"],
        ["zeroi2v:", "top1", "is"],
        ["zeroi2v:", "in_pair_top1", "is"],
        ["zeroi2v:", "shuffled_top1", "is"],
    ]


def test_other_settings_are_not_compared(demo: ModuleType, done: Path) -> None:
    lock = yaml.safe_load((done / "dvc.lock").read_text())
    lock["stages"]["train@aim"]["params"]["params.yaml"]["train.epochs"] = 2
    (done / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert demo.compared(done).startswith("not compared")
