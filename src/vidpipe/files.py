"""Nothing half-written: every file or folder appears whole, under its final name, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidpipe.errors import VidpipeError


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str = "") -> Path:
    """A new name, which `remove_temporary` finds again."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, path.suffix)
    # Not mkstemp, which makes private files (0600): an ordinary one follows the user's umask, which
    # the kernel knows and a process can only ask for by changing it under its other threads.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it replaces `path` as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():
            # A folder cannot be renamed over a full one: move the old one aside first, so that a
            # kill between the two renames leaves both on disk and loses neither.
            old = temporary.with_name(temporary.name + ".old")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG),
}


@contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """A full, read-only or broken disk in the block as a VidpipeError of one line: the file that the
    system names, else `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK:
            raise
        place = error.filename or path
        reason = os.strerror(error.errno)
        raise VidpipeError(
            f"{place}: {reason}; make it writable or make room, and run it again"
        ) from (error)


def remove_temporary(path: Path) -> None:
    """What a kill left of `atomic_file` or `atomic_folder` of `path`; for its only writer."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file, which may be a stranger's.

    Raises VidpipeError where it is missing, unreadable or not JSON; NaN and infinity are not.
    """

    def refuse(text: str) -> float:
        raise ValueError(f"{text[:20]} is not a finite number")

    def finite(text: str) -> float:
        return value if math.isfinite(value := float(text)) else refuse(text)

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except FileNotFoundError:
        raise VidpipeError(f"{path}: no such file") from None
    except OSError as error:
        raise VidpipeError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise VidpipeError(f"{path}: not valid JSON (nested too deep)") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise VidpipeError(f"{path}: not valid JSON ({error})") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
