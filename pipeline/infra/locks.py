"""A lock on a folder between processes. It leaves no file behind, and ends with its process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 0.05


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock on `folder`, made where it is missing. Threads of a process exclude each other, too.

    On a file system without locks it holds nothing. Raises Busy when another holder keeps it for
    `wait_s`, OSError when the folder cannot be made or opened.
    """
    until = time.monotonic() + wait_s
    descriptor = _take(folder)
    while descriptor is None:
        if time.monotonic() >= until:
            raise Busy(folder)
        time.sleep(EVERY_S)
        descriptor = _take(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _take(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it, and somebody made it anew.
        if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except BlockingIOError:
        pass
    except OSError:
        return descriptor  # such as NFS, which locks no folder
    os.close(descriptor)
    return None
