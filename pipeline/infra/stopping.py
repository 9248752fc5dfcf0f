"""SIGTERM and Ctrl-C end a training in order: at its next step, with a checkpoint, within 10 s."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

GRACE_S = 8.0
"""A step that takes longer is not waited for: the last checkpoint is then an older one."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The command was stopped by a signal, in order. `str` is for the user, `code` the exit code.

    A BaseException of its own, since Typer takes a KeyboardInterrupt for its own and drops the message.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def until_signal(stop: threading.Event) -> Iterator[None]:
    """Context manager in which a first Ctrl-C or SIGTERM sets `stop`; a second one ends at once.

    Whoever handled them before does so afterwards. In another than the main thread, it does nothing.
    """

    def on(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Context manager that turns a first signal into a request to stop, which a file carries to workers.

    A second signal, or `GRACE_S` without an end, ends the process at once.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.number: int | None = None
        self._timer: threading.Timer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        global _here
        _here = False
        self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def _on(self, number: int, frame: FrameType | None) -> None:
        global _here
        if self.number is not None:
            self._leave()
        self.number, _here = number, True
        with suppress(OSError):  # such as a full disk: this process knows it all the same
            self.file.touch()
        self._timer = threading.Timer(GRACE_S, self._leave)
        self._timer.daemon = True
        self._timer.start()

    def _leave(self) -> None:
        assert self.number is not None
        print(
            "vidpipe: left without waiting for the step; run the same command again to go on from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + self.number)


_here = False
"""A request in this very process."""


def asked(file: Path, every_s: float = 0.2) -> Callable[[], bool]:
    """A function that says whether to stop; it looks at the disk a few times a second."""
    seen, looked = False, 0.0

    def answer() -> bool:
        nonlocal seen, looked
        if not (seen or _here) and time.monotonic() - looked > every_s:
            seen, looked = file.exists(), time.monotonic()
        return seen or _here

    return answer
