"""Decoding untrusted files in processes of their own: of `extract`, `predict` and the demo page.

A decoder that hangs or dies costs its file and is replaced. Results of a file come one by one through
a pipe that holds a few: a decoder that is ahead of its reader waits, whatever the length of its video.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import ModuleType, TracebackType
from typing import Generic, NamedTuple, TypeVar

from vidpipe.video.quarantine import QuarantineError

Task = TypeVar("Task")
Result = TypeVar("Result")
# Not forked: this process has threads, and a fork may copy a lock that one of them holds.
CONTEXT = multiprocessing.get_context("spawn")

START_S = 120
"""A process may take to start; only then does a file's own time run."""


class Event(NamedTuple, Generic[Task, Result]):
    number: int
    """Of the task in the order given, from 0."""
    task: Task
    result: Result | QuarantineError | None
    """None: that was the whole file; an error: there will be no more of it."""


class Guards(Generic[Task, Result]):
    """`workers` decoding processes; a context manager. Each takes one file after another.

    `work` gives the results of a task, one by one; tasks, results and `work` are pickled. A
    QuarantineError that it raises ends its file; so does any other exception (`undecodable`).
    """

    def __init__(
        self, work: Callable[[Task], Iterator[Result]], timeout_s: float, workers: int = 1
    ) -> None:
        self.timeout_s = timeout_s
        self._new: Callable[[], _Decoder[Task, Result]] = lambda: _Decoder(work)
        self._decoders = [self._new() for _ in range(workers)]

    def __enter__(self) -> Guards[Task, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for decoder in self._decoders:
            decoder.kill()

    def run(self, tasks: Iterable[Task]) -> Iterator[Event[Task, Result]]:
        """Results of each task in order, those of several tasks mixed; then its end.

        `tasks` is read as decoders become free. One that gives nothing for `timeout_s` ends with
        reason `timeout`, one whose decoder dies with `crashed`.
        """
        queue = enumerate(tasks)
        busy: dict[Connection, _Decoder[Task, Result]] = {}
        try:
            while True:
                self._decoders = [d if d.alive else self._new() for d in self._decoders]
                idle = [d for d in self._decoders if d.pipe not in busy]
                for decoder, (number, task) in zip(idle, queue, strict=False):
                    decoder.start(number, task, self.timeout_s)
                    busy[decoder.pipe] = decoder
                if not busy:
                    return
                yield from self._next(busy)
        finally:
            for decoder in busy.values():  # nobody will read what they still have to say
                decoder.kill()

    def _next(
        self, busy: dict[Connection, _Decoder[Task, Result]]
    ) -> Iterator[Event[Task, Result]]:
        """At least one event unless a wait ran out early; who is done leaves `busy`."""
        first = min(decoder.deadline for decoder in busy.values())
        ready = set(wait(list(busy), timeout=max(0.0, first - time.monotonic())))
        for pipe, decoder in list(busy.items()):
            result: Result | QuarantineError | None
            if pipe in ready:
                result = decoder.receive()
                decoder.deadline = time.monotonic() + self.timeout_s
                if result is None and not decoder.ready:
                    decoder.ready = True
                    continue
            elif decoder.deadline < time.monotonic() and not pipe.poll():
                decoder.kill()
                detail = f"nothing from the decoder for {self.timeout_s:g} s"
                result = QuarantineError("timeout", detail)
            else:
                continue
            assert decoder.job is not None
            if result is None or isinstance(result, QuarantineError):
                del busy[pipe]
            yield Event(*decoder.job, result)


class _Decoder(Generic[Task, Result]):
    def __init__(self, work: Callable[[Task], Iterator[Result]]) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, work), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()  # so that a dead process is the end of the pipe
        self.alive, self.ready = True, False
        self.job: tuple[int, Task] | None = None
        self.deadline = 0.0

    def start(self, number: int, task: Task, timeout_s: float) -> None:
        self.job = number, task
        self.deadline = time.monotonic() + (timeout_s if self.ready else START_S)
        try:
            self.pipe.send(task)
        except OSError:  # it died while it was idle; receive() will say so
            return

    def receive(self) -> Result | QuarantineError | None:
        try:
            result: Result | QuarantineError | None = self.pipe.recv()
            return result
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            self.kill()
            return QuarantineError("crashed", f"the decoder's process died with exit code {code}")

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()
        self.pipe.close()


_SWAP = threading.Lock()
"""Two threads that start a process at once would give each other's stand-in back as the real one."""


@contextmanager
def _without_main() -> Iterator[None]:
    """A new process runs the parent's main script once more, under another name, to find what it
    defines. Ours needs nothing of it, and a script that classifies at its top level would never end."""
    with _SWAP:
        own = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = own


def _serve(pipe: Connection, work: Callable[[Task], Iterator[Result]]) -> None:
    """The decoding process: until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    pipe.send(None)  # ready
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        end: QuarantineError | None = None
        try:
            for result in work(task):
                pipe.send(result)
        except QuarantineError as error:
            end = error
        except BrokenPipeError:
            return
        except MemoryError:
            end = QuarantineError("crashed", "the decoder ran out of memory")
        except Exception as error:
            # Whatever else a hostile file provokes is still this file's problem, not the run's.
            end = QuarantineError("undecodable", f"{type(error).__name__}: {error}")
        try:
            pipe.send(end)
        except BrokenPipeError:
            return
