"""A live source -> its newest window whenever one is asked for. In a process of its own; no torch.

One thread takes packets off the source as fast as they come, so that nothing waits in buffers that
nobody sees; one decodes them into a ring of frames. Where decoding is too slow for the stream, packets
are dropped up to the next key frame, and counted.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from typing import Any, NamedTuple

import av

from vidpipe.inference.live.address import Address
from vidpipe.inference.live.pace import Pace
from vidpipe.inference.live.ring import Ring
from vidpipe.inference.segments import Request, Segment, frames_wanted
from vidpipe.video.canonical import Canonical
from vidpipe.video.probe import MAX_FPS, check_pixels, first_line, video_stream
from vidpipe.video.quarantine import QuarantineError, Reason

BEAT_S = 0.25
"""An ask is answered at least so often, so that its process is known to live."""
LAG_S = 1.0
"""Of packets that wait to be decoded: more are dropped."""
WINDOW_S = 2.0
"""Of a model that samples uniformly, where nothing else is asked for."""


@dataclass
class Counts:
    """Of frames, since the last answer."""

    shown: int = 0
    dropped: int = 0
    """Not decoded, since decoding fell behind."""
    broken: int = 0
    """Damaged."""


class Answer(NamedTuple):
    """What a source has to say when it is asked."""

    segment: Segment | None
    """The newest window, from 0 to its length in seconds; None: there is no new one."""
    arrived: float
    """When its last frame came, by time.monotonic."""
    skipped: int
    """Windows for which nobody asked in time."""
    pauses: tuple[float, ...]
    """Seconds of each pause that ended since the last answer."""
    counts: Counts


def read(
    address: Address, request: Request, asks: Semaphore, stdin: Connection | None = None
) -> Iterator[Answer]:
    """An answer for each release of `asks`. Ends where the source does, if `address.ends`.

    Raises QuarantineError where the source is lost: `missing_file` (no connection), `timeout` (nothing
    for `extract.timeout_s`), `truncated` (it ended), `undecodable`, `no_video_stream`, `too_large`.
    """
    reader = Reader(address, request, stdin)
    parent = multiprocessing.parent_process()
    while True:
        while not asks.acquire(timeout=5):
            if parent is not None and not parent.is_alive():
                return  # it was killed, and nobody else would end us
        found = reader.answer()
        if found is None:
            return
        yield found


class Reader:
    """The threads of one connection. They end with their process."""

    def __init__(self, address: Address, request: Request, stdin: Connection | None) -> None:
        self.address, self.request = address, request
        self.stall_s = request.extract.timeout_s
        self.stdin = None if stdin is None else _Pipe(stdin)
        self.changed = threading.Condition()
        self.packets: deque[tuple[Any, float, bool]] = deque()
        """Packet, when it came, whether others before it were dropped; at last, how the stream ended."""
        self.skipping = False
        """Whether packets are dropped up to the next key frame."""
        self.counts = Counts()
        self.ring: Ring | None = None
        self.done: QuarantineError | bool = False
        self.given = False
        self.last_frame = time.monotonic()
        self.broken_since = 0
        """Frames, since the last whole one."""
        threading.Thread(target=self._run, args=(self._demux,), daemon=True).start()

    # -- what the generator asks -----------------------------------------------------------------

    def answer(self) -> Answer | None:
        """The newest window once it is due, or after BEAT_S what else there is to say; None: the end."""
        until = time.monotonic() + BEAT_S
        with self.changed:
            while not self.ready and not self.done and (left := until - time.monotonic()) > 0:
                self.changed.wait(left)
            due = self.ready
            if self.done and not due:
                if isinstance(self.done, QuarantineError):
                    raise self.done
                due = not self.given and self.ring is not None and bool(self.ring.frames)
                if not due:
                    return None
            if time.monotonic() - self.last_frame > self.stall_s and not self.done:
                self._stalled()
            found = self._window() if due else Answer(None, 0.0, 0, self._pauses(), self.counts)
            self.counts = Counts()
        return found

    @property
    def ready(self) -> bool:
        return self.ring is not None and self.ring.ready

    def _pauses(self) -> tuple[float, ...]:
        return () if self.ring is None else self.ring.ended_pauses(time.monotonic())

    def _window(self) -> Answer:
        ring = self.ring
        assert ring is not None
        length = len(ring.frames)
        step = max(1, round((self.request.step_s or length / ring.fps) * ring.fps))
        skipped = 0 if ring.due is None else (ring.count - ring.due) // step
        ring.due, self.given = ring.count + step, True
        indices, positions = frames_wanted(length, self.request)
        segment = Segment(0.0, float(length / ring.fps), ring.take(indices), positions)
        return Answer(segment, ring.arrived, skipped, self._pauses(), self.counts)

    def _stalled(self) -> None:
        """A loss, unless a source that cannot be opened anew may just be waiting."""
        if self.broken_since:
            detail = f"no picture for {self.stall_s:g} s, {self.broken_since} broken ones"
            raise QuarantineError("undecodable", detail)
        if not self.address.ends:
            raise QuarantineError("timeout", f"no picture for {self.stall_s:g} s")

    # -- the threads -----------------------------------------------------------------------------

    def _run(self, work: Any, *arguments: Any) -> None:
        """Whatever a hostile stream provokes ends its connection, with a reason."""
        try:
            work(*arguments)
        except QuarantineError as error:
            self._end(error)
        except Exception as error:
            self._end(
                QuarantineError("undecodable", f"{type(error).__name__}: {first_line(error)}")
            )

    def _end(self, how: QuarantineError | bool) -> None:
        with self.changed:
            self.done = self.done or how
            self.changed.notify_all()

    def _demux(self) -> None:
        try:
            container = self.address.open(self.stall_s, self.stdin)
        except (av.FFmpegError, OSError, ValueError) as error:
            if self.stdin is not None and self.stdin.empty:
                return self._end(True)
            found = isinstance(error, av.error.InvalidDataError | ValueError)
            reason: Reason = "undecodable" if found else "missing_file"
            raise QuarantineError(reason, first_line(error)) from None
        with container:
            stream = video_stream(container)
            if stream.codec_context is None:
                raise QuarantineError("undecodable", "its video codec is unknown")
            with self.changed:
                self.ring = self._ring(stream)
                self.last_frame = time.monotonic()
            threading.Thread(target=self._run, args=(self._decode, stream), daemon=True).start()
            self._take_packets(container, stream)
            with self.changed:  # the decoder still uses the stream
                while not self.done:
                    self.changed.wait(1)

    def _ring(self, stream: Any) -> Ring:
        declared = [Fraction(r) for r in (stream.average_rate, stream.guessed_rate) if r and r > 0]
        source = next((rate for rate in declared if 1 <= rate <= MAX_FPS), Fraction(25))
        asked = self.request.extract.fps
        fps = source if asked is None else Fraction(asked).limit_denominator(1000)
        seconds, lengths = self.request.window_s, [1]
        for sampling in self.request.samplings:
            uniform = seconds is not None or sampling.strategy == "uniform"
            span = round((seconds or WINDOW_S) * fps)
            lengths.append(span if uniform else (sampling.num_frames - 1) * sampling.stride + 1)
        return Ring(fps, max(lengths), source)

    def _take_packets(self, container: Any, stream: Any) -> None:
        pace = Pace(time.monotonic())
        ended: QuarantineError | None = None
        try:
            for packet in container.demux(stream):
                if packet.size:
                    stamp = packet.dts if packet.dts is not None else packet.pts
                    seconds = None if stamp is None else float(stamp * packet.time_base)
                    time.sleep(pace.wait(seconds, time.monotonic()))
                    self._put(packet, time.monotonic())
        except (av.FFmpegError, OSError, ValueError) as error:
            silent = isinstance(error, av.error.ExitError | av.error.TimeoutError)
            detail = f"no data for {self.stall_s:g} s" if silent else first_line(error)
            ended = QuarantineError("timeout" if silent else "truncated", detail)
        if ended is None and not self.address.ends:
            ended = QuarantineError("truncated", "the stream ended")
        with self.changed:
            self.packets.append((ended or True, time.monotonic(), False))
            self.changed.notify_all()

    def _put(self, packet: Any, arrived: float) -> None:
        with self.changed:
            waiting = self.packets
            behind = bool(waiting) and arrived - waiting[0][1] > LAG_S
            if behind:
                self.counts.dropped += len(waiting)
                waiting.clear()
                self.skipping = True
            if self.skipping and not packet.is_keyframe:
                self.counts.dropped += 1
                return
            waiting.append((packet, arrived, self.skipping))
            self.skipping = False
            self.changed.notify_all()

    def _decode(self, stream: Any) -> None:
        context, ring = stream.codec_context, self.ring
        assert ring is not None
        size: tuple[int, int] | None = None
        canonical = Canonical(self.request.extract.short_side, stream.sample_aspect_ratio)
        while True:
            with self.changed:
                while not self.packets:
                    self.changed.wait()
                packet, arrived, anew = self.packets.popleft()
            if anew:
                context.flush_buffers()
            last = isinstance(packet, QuarantineError | bool)
            try:
                frames = context.decode(None) if last else packet.decode()
            except (av.FFmpegError, OSError, ValueError):
                self._count_broken()
                frames = []
            for frame in frames:
                if frame.is_corrupt:
                    self._count_broken()
                    continue
                aspect = stream.sample_aspect_ratio
                check_pixels(frame.width, frame.height, aspect, self.request.extract)
                new_size = size != (frame.width, frame.height)
                if new_size:
                    size = frame.width, frame.height
                    canonical = Canonical(self.request.extract.short_side, aspect)
                shown = None if frame.pts is None else frame.pts * stream.time_base
                with self.changed:
                    if new_size:
                        ring.clear()
                    ring.add(shown, arrived, lambda frame=frame, form=canonical: form(frame))  # type: ignore[misc]
                    self.counts.shown += 1
                    self.last_frame, self.broken_since = time.monotonic(), 0
                    self.changed.notify_all()
            if last:
                return self._end(packet)

    def _count_broken(self) -> None:
        with self.changed:
            self.counts.broken += 1
            self.broken_since += 1


class _Pipe(io.RawIOBase):
    """Standard input of the process that started this one."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.empty = pipe, True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = os.read(self.pipe.fileno(), size if size > 0 else 2**16)
        self.empty = self.empty and not found
        return found
