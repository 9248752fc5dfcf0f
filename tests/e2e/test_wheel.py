"""A built wheel, installed away from the clone, starts a project and runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from e2e_project import environment, run_in
from project import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TINY = (
    *("pipeline.methods=[linear_probe]", "synth.pairs=[horizontal]", "synth.clips_per_class=8"),
    *(
        "evaluate.reversed_pairs=[[move_left,move_right]]",
        "train.epochs=1",
        "train.warmup_epochs=0",
    ),
    *("train.threads=1", "train.batch_size=4", "export.parity_clips=2", "export.formats=[]"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed into; what it needs is the tests' own."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    listed = run_in(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.stdout.split("\n"):
        file = PROJECT / name
        if file.is_file() and name.startswith(("src/", "pipeline/", "pyproject", "README", "LIC")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    run_in(root, *pip, "wheel", *offline, "--no-build-isolation", "-w", str(root), str(source))
    (wheel,) = root.glob("vidpipe-*.whl")
    run_in(root, *pip, "install", *offline, "--target", str(root / "site"), str(wheel))
    return root


def test_it_carries_recipes_templates_and_weights(installed: Path) -> None:
    (wheel,) = installed.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, there in (("src", "vidpipe"), ("", "pipeline")):
        files = [f for f in (PROJECT / folder / there).rglob("*") if f.is_file()]
        tracked = {
            str(f.relative_to(PROJECT / folder)) for f in files if "__pycache__" not in f.parts
        }
        assert tracked - names == set()


@pytest.mark.long  # a process for each stage, which imports all anew
def test_it_starts_a_project_and_runs_it(installed: Path, tmp_path: Path) -> None:
    own = {"PYTHONPATH": str(installed / "site"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment() | own, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    where = run(sys.executable, "-c", "import pipeline, vidpipe; print(pipeline.__file__)")
    assert where.startswith(str(installed))
    assert "dvc repro" in run("vidpipe", "init")
    assert "num_frames: 8" in run("vidpipe", "params", "--recipe", "k400_aim_b16_8f")
    overrides = [part for text in TINY for part in ("--set", text)]
    run("vidpipe", "params", "--write", *overrides)
    run("dvc", "repro")
    assert "| linear_probe |" in (tmp_path / "results/report.md").read_text()
    assert run("dvc", "status").strip() == "Data and pipelines are up to date."
    run("git", "add", "-A")
    # Nothing of the size of data or of a model is left for git.
    sizes = {f: (tmp_path / f).stat().st_size for f in run("git", "ls-files").split("\n") if f}
    assert max(sizes.values()) < 3e6, sizes
    assert not {f for f in sizes if f.startswith(("mlflow", "mlruns", "ray/", "models/linear"))} - {
        f for f in sizes if f.endswith(".gitignore")
    }
    assert os.path.lexists(tmp_path / "dvc.lock")
