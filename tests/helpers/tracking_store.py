"""An empty MLflow store, made once a process: its tables take MLflow seconds."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def empty_store() -> Path:
    """As a command makes it that finds none; to be copied, not written to."""
    from pipeline.infra.mlflow import sqlite_store

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "mlflow.db"
    sqlite_store.prepare(file)
    return file


def copy_store(folder: Path) -> Path:
    """`mlflow.db` in `folder`, unless it is there."""
    file = folder / "mlflow.db"
    return file if file.exists() else Path(shutil.copyfile(empty_store(), file))
