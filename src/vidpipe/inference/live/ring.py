"""The last frames of a stream at a constant rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vidpipe.inference.segments import RECENT_BYTES
from vidpipe.video.canonical import Frame
from vidpipe.video.decode import JUMP_S
from vidpipe.video.quarantine import QuarantineError

PAUSE_S = 0.5
"""Without a frame: longer ones are reported, whether the network stood still or the camera."""


@dataclass
class Ring:
    """`length` frames, `fps` a second, in the memory of so many, however long it runs.

    Slot k holds what a player shows k / fps after the first frame, as in a file that extraction decodes.
    """

    fps: Fraction
    length: int
    source_fps: Fraction
    frames: deque[Frame] = field(init=False)
    count: int = 0
    """Of slots since the first frame."""
    arrived: float = 0.0
    """When the newest frame came, by time.monotonic."""
    due: int | None = None
    """The count at which the next window ends; None: as soon as there is one."""
    pauses: list[float] = field(default_factory=list)
    """Seconds of each pause that nobody has asked about yet."""
    _paused: float = 0.0
    """When the last of them was over."""
    _start: Fraction | None = None
    _last: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        self.frames = deque(maxlen=self.length)

    def add(self, time: Fraction | None, arrived: float, picture: Callable[[], Frame]) -> None:
        """A frame that is to be shown at `time` (None: after the last one). `picture` is called only
        where the frame is kept. Raises QuarantineError (`too_large`) where `length` frames are."""
        if time is None:
            time = self._last + 1 / self.source_fps
        step = time - self._last
        if self._start is None:
            self._start = time
        elif -PAUSE_S < step <= 0:
            return  # out of order
        else:
            self._note_pause(float(step), arrived)
            if not 0 <= step <= JUMP_S:  # a camera's clock was set, or the sender began anew
                self._start += step - 1 / self.source_fps
                self.clear()
            elif step * self.fps > self.length / 2:
                self.clear()  # a window would show a picture that stands still for most of it
        self._last, self.arrived = time, arrived
        due = math.ceil((time - self._start) * self.fps - self.fps / self.source_fps / 4)
        if due < self.count - 1:  # of a source faster than `fps`, after a clock was set
            return
        new = picture()
        if not self.frames and new.nbytes * self.length > RECENT_BYTES:
            height, width = new.shape[:2]
            detail = f"a window has {self.length} frames of {width}x{height} pixels"
            raise QuarantineError("too_large", f"{detail}, over {RECENT_BYTES >> 20} MB")
        if self.frames and due == self.count - 1:
            self.frames[-1] = new
            return
        if self.frames:
            self.frames.extend([self.frames[-1]] * min(due - self.count, self.length))
        self.frames.append(new)
        self.count = due + 1

    def clear(self) -> None:
        """Forget the frames: those to come are of another scene, or size."""
        self.frames.clear()
        self.due = None

    @property
    def ready(self) -> bool:
        """Whether a window is due."""
        return len(self.frames) == self.length and (self.due is None or self.count >= self.due)

    def ended_pauses(self, now: float) -> tuple[float, ...]:
        """Those that have not been told, once they are known whole."""
        if now - self._paused < PAUSE_S:
            return ()
        found = tuple(self.pauses)
        self.pauses.clear()
        return found

    def take(self, indices: list[int]) -> NDArray[np.uint8]:
        """(len(indices), H, W, 3) of the frames in it, 0 the oldest."""
        return np.stack([self.frames[index] for index in indices])

    def _note_pause(self, step: float, arrived: float) -> None:
        pause = max(arrived - self.arrived, step if 0 <= step <= JUMP_S else 0.0)
        if pause <= PAUSE_S + 1 / self.source_fps:
            return
        if self.pauses and arrived - self._paused < PAUSE_S:
            # The same one: of some streams a frame is only known once the next one begins, so that the
            # last frame before a pause comes after it.
            self.pauses[-1] = max(self.pauses[-1], pause)
        else:
            self.pauses.append(pause)
        self._paused = arrived
