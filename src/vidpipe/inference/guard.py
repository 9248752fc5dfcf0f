"""Decoding untrusted files in processes of their own, segment by segment.

A decoder that hangs or dies costs its video and is replaced. Results travel through a pipe that holds
a few frames: a decoder that is ahead of the model waits, whatever the length of its video.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import NamedTuple

from vidpipe.inference.segments import Request, Segment, segments
from vidpipe.video.quarantine import QuarantineError

Work = Callable[[str, Request], Iterator[Segment]]
# Not forked: this process has threads, and a fork may copy a lock that one of them holds.
CONTEXT = multiprocessing.get_context("spawn")

START_S = 120
"""A process may take to start; only then does a video's own time run."""


class Event(NamedTuple):
    number: int
    """Of the source in the order given, from 0."""
    source: str
    result: Segment | QuarantineError | None
    """None: that was the whole video; an error: there will be no more of it."""


class Guards:
    """`workers` decoding processes; a context manager. Each takes one video after another."""

    def __init__(self, request: Request, workers: int = 1, work: Work = segments) -> None:
        self.timeout_s = request.extract.timeout_s
        self._new = lambda: _Decoder(request, work)
        self._decoders = [self._new() for _ in range(workers)]

    def __enter__(self) -> Guards:
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

    def run(self, sources: Iterable[str]) -> Iterator[Event]:
        """Segments of each video in order, those of several videos mixed; then its end.

        `sources` is read as decoders become free. A video that gives nothing for
        `extract.timeout_s` ends with reason `timeout`, one whose decoder dies with `crashed`.
        """
        queue = enumerate(sources)
        busy: dict[Connection, _Decoder] = {}
        try:
            while True:
                self._decoders = [d if d.alive else self._new() for d in self._decoders]
                idle = [d for d in self._decoders if d.pipe not in busy]
                for decoder, job in zip(idle, queue, strict=False):
                    decoder.start(*job, self.timeout_s)
                    busy[decoder.pipe] = decoder
                if not busy:
                    return
                yield from self._next(busy)
        finally:
            for decoder in busy.values():  # nobody will read what they still have to say
                decoder.kill()

    def _next(self, busy: dict[Connection, _Decoder]) -> Iterator[Event]:
        """At least one event unless a wait ran out early; who is done leaves `busy`."""
        first = min(decoder.deadline for decoder in busy.values())
        ready = set(wait(list(busy), timeout=max(0.0, first - time.monotonic())))
        for pipe, decoder in list(busy.items()):
            result: Segment | QuarantineError | None
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
            if not isinstance(result, Segment):
                del busy[pipe]
            yield Event(decoder.number, decoder.source, result)


class _Decoder:
    def __init__(self, request: Request, work: Work) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(theirs, request, work), daemon=True)
        self.process.start()
        theirs.close()  # so that a dead process is the end of the pipe
        self.alive, self.ready = True, False
        self.number, self.source, self.deadline = -1, "", 0.0

    def start(self, number: int, source: str, timeout_s: float) -> None:
        self.number, self.source = number, source
        self.deadline = time.monotonic() + (timeout_s if self.ready else START_S)
        try:
            self.pipe.send(source)
        except OSError:  # it died while it was idle; receive() will say so
            return

    def receive(self) -> Segment | QuarantineError | None:
        try:
            result: Segment | QuarantineError | None = self.pipe.recv()
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


def _serve(pipe: Connection, request: Request, work: Work) -> None:
    """The decoding process: until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    pipe.send(None)  # ready
    while True:
        try:
            source = pipe.recv()
        except (EOFError, OSError):
            return
        end: QuarantineError | None = None
        try:
            for segment in work(source, request):
                pipe.send(segment)
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
