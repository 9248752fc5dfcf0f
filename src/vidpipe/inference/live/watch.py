"""A live source for days: its windows, its pauses, its losses; it is opened anew after each.

Each connection has a decoding process of its own (`video.guard`), so that neither a hostile stream nor
what FFmpeg may leak from one connection to the next does harm.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from vidpipe.inference.live.address import OPEN_S, Address
from vidpipe.inference.live.reader import Answer, read
from vidpipe.inference.segments import Request, Segment
from vidpipe.video.guard import CONTEXT, Guards
from vidpipe.video.quarantine import QuarantineError

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
"""Between a loss and the next try; doubled with each that fails."""
SPARE_S = 10.0
"""Beyond its own limits, for a process to say something before it is taken for hung."""
HOPELESS = ("too_large",)
"""Reasons that another try would only repeat."""


class Window(NamedTuple):
    """The newest pictures."""

    segment: Segment
    arrived: float
    """When the last of them came, by time.monotonic."""
    skipped: int
    """Windows before it that came while nobody asked."""
    dropped: int
    """Frames that were not decoded since the last window, for lack of time."""
    broken: int
    """Damaged frames since then."""


class Gap(NamedTuple):
    """A stretch without pictures that is over."""

    seconds: float
    attempts: int
    """To connect; 0: the connection held."""


class Lost(NamedTuple):
    """There is no connection. Said once, however many tries it takes."""

    reason: str
    detail: str
    retry_s: float


class Waiting(NamedTuple):
    """Nothing new; said a few times a second."""


@dataclass
class Watch:
    """Iterable over what happens. Ends with `stop`, with a source that ends, and by `lost_for_good`."""

    address: Address
    request: Request
    """`extract.timeout_s`: seconds without a picture that are a loss."""
    stop: threading.Event = field(default_factory=threading.Event)
    give_up_s: float | None = None
    """Seconds without a picture after which it ends; None: never."""
    first_wait_s: float = FIRST_WAIT_S
    lost_for_good: QuarantineError | None = None
    """Why it ended, where neither the source nor `stop` did it."""

    def __iter__(self) -> Iterator[Window | Gap | Lost | Waiting]:
        last_picture = time.monotonic()
        wait_s, attempts, dropped, broken = self.first_wait_s, 0, 0, 0
        while not self.stop.is_set():
            lost: QuarantineError | None = None
            with closing(self._connection()) as answers:
                for answer in answers:
                    if isinstance(answer, QuarantineError):
                        lost = answer
                        break
                    dropped += answer.counts.dropped
                    broken += answer.counts.broken
                    if answer.counts.shown:
                        if attempts:
                            yield Gap(time.monotonic() - last_picture, attempts)
                        last_picture, wait_s, attempts = time.monotonic(), self.first_wait_s, 0
                    for seconds in answer.pauses:
                        yield Gap(seconds, 0)
                    if answer.segment is None:
                        yield Waiting()
                    else:
                        window = (answer.segment, answer.arrived, answer.skipped, dropped, broken)
                        dropped = broken = 0
                        yield Window(*window)
                    if self.stop.is_set():
                        return
                    if self._too_long(last_picture):
                        lost = QuarantineError("timeout", f"no picture for {self.give_up_s:g} s")
                        break
            if lost is None:
                return
            hopeless = lost.reason in HOPELESS or self.address.kind == "file"
            if attempts == 0 and not hopeless:
                yield Lost(lost.reason, lost.detail, wait_s)
            if hopeless or self._too_long(last_picture):
                self.lost_for_good = lost
                return
            attempts += 1
            self.stop.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _too_long(self, last_picture: float) -> bool:
        return self.give_up_s is not None and time.monotonic() - last_picture > self.give_up_s

    def _connection(self) -> Generator[Answer | QuarantineError, None, None]:
        """Of one connection: an answer for each time that this is advanced, then why it was lost."""
        asks = CONTEXT.Semaphore(0)
        pipe = Connection(os.dup(0), writable=False) if self.address.kind == "-" else None
        work = partial(read, request=self.request, asks=asks, stdin=pipe)
        timeout_s = self.request.extract.timeout_s + OPEN_S + SPARE_S
        try:
            with Guards(work, timeout_s) as guards:
                asks.release()
                for event in guards.run([self.address]):
                    if event.result is None:
                        return
                    yield event.result
                    asks.release()
        finally:
            if pipe is not None:
                pipe.close()
