"""One project for all end-to-end tests, and ways to run commands in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_project import Run, copy_project, run_in


@pytest.fixture
def vidpipe(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command in this process: its exit code and the last line of its standard error."""
    from pipeline.cli.app import main

    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["vidpipe", *words])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        lines = capsys.readouterr().err.splitlines()
        return code, lines[-1] if lines else ""

    return call


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After one `dvc repro` over every stage and method, its results committed."""
    folder = tmp_path_factory.mktemp("e2e") / "project"
    folder.mkdir()
    copy_project(folder)
    run_in(folder, "dvc", "repro")
    run_in(folder, "git", "add", "-A")
    run_in(folder, "git", "commit", "-qm", "results")
    return folder


@pytest.fixture
def run(project: Path) -> Run:
    return lambda *command, **options: run_in(project, *command, **options)
