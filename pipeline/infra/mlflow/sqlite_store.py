"""MLflow's store in one SQLite file: made once, whole, and looked at before MLflow opens it.

MLflow itself tries for 100 s to open what is no such file. Two commands that find none would make its
tables at the same time, where one of them fails; a kill would leave a part of them.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipeline.infra.locks import Busy, locked

BUSY_S = 5.0
"""How long another process may hold the file in a transaction, as SQLite's own default."""
MAKING_S = 120.0
"""How long another process may take to make the tables: seconds, more on a machine under load."""


class NoStore(Exception):
    """What is there is no store, and never will be."""


def file_of(uri: str) -> Path | None:
    """The file of an SQLite address; None for any other address and for a store in memory."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name == ":memory:" or name[:5] == "file:":
        return None
    return Path(name)


def prepare(file: Path) -> None:
    """Make the store at `file` unless it exists, and prove that it can be written to.

    Raises NoStore where something else is there, OSError or sqlite3's error where the file cannot be
    used now: it is locked, not writable, or the disk is full.
    """
    if file.is_dir():
        raise NoStore("a folder; a tracking store is one file")
    try:
        if not _exists(file):
            with locked(file.absolute().parent, wait_s=MAKING_S):
                if not _exists(file):
                    _make(file)
        _prove(file)
    except Busy:
        raise TimeoutError(f"another process has been making it for {MAKING_S:g} s") from None
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise NoStore(f"not a readable SQLite database ({error})") from None


def _exists(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _make(file: Path) -> None:
    """Its tables and the default experiment, in a file of another name that then becomes `file`."""
    draft = file.with_name(f".{file.name}.new")
    for left in file.parent.glob(f"{draft.name}*"):  # by a kill
        left.unlink()
    MlflowClient(f"sqlite:///{draft.absolute()}")
    draft.replace(file)


def _prove(file: Path) -> None:
    """Raises sqlite3's error where the file cannot be written to."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", BUSY_S, uri=True)) as store:
        store.execute("BEGIN IMMEDIATE")
        store.execute("SELECT count(*) FROM sqlite_master")
