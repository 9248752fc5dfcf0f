"""When a source that could be read faster than real time is read: files, and servers of files."""

from __future__ import annotations

from dataclasses import dataclass

from vidpipe.video.decode import JUMP_S

BURST_S = 3.0
"""Of stream that a live source may give at once when it is opened: what its server had kept."""
OPENING_S = 10.0
"""In which this is decided. Later only a clock that runs fast is ahead of ours."""


@dataclass
class Pace:
    """Seconds to wait before a packet is taken.

    A live source is never waited for: what is ahead of its clock moves the clock. One that gives more
    than BURST_S at once is no live source, and is taken in real time.
    """

    opened: float
    paced: bool = False
    _burst: float = 0.0
    _last: float | None = None
    _origin: float = 0.0

    def wait(self, stamp: float | None, now: float) -> float:
        """`stamp`: the packet's time in the stream, in seconds; `now`: by time.monotonic."""
        if stamp is None:
            return 0.0
        if self._last is None or abs(stamp - self._last) > JUMP_S:
            self._origin = now - stamp
        self._last = stamp
        ahead = stamp + self._origin - now
        if ahead <= 0:
            return 0.0
        if self.paced:
            return ahead
        self._origin -= ahead
        if now - self.opened < OPENING_S:
            self._burst += ahead
            self.paced = self._burst > BURST_S
        return 0.0
