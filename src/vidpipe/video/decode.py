"""Reading untrusted video files: sequential PyAV decode, canonical frames, every doubt a reason.

FFmpeg is silent about much damage, so a file is believed only when no frame is marked corrupt, the
decoder raises nothing, and as many frames come out as the container declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vidpipe.video.config import ExtractConfig

Frame = NDArray[np.uint8]


class QuarantineError(Exception):
    """This video cannot be trusted. `reason` is machine-readable, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return QuarantineError, (self.reason, self.detail)  # survives the trip between processes


@dataclass
class VideoInfo:
    fps: Fraction
    declared_frames: int
    """0 where the container does not say."""


def canonical_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height with the short side given and both even (H.264 4:2:0 needs even sides)."""
    scale = short_side / min(width, height)
    return tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))  # type: ignore[return-value]


def decode(path: Path, config: ExtractConfig) -> tuple[VideoInfo, Iterator[Frame]]:
    """Open `path`; the iterator yields (H, W, 3) uint8 RGB frames at a constant rate.

    Rotation is applied, edit lists are honoured (FFmpeg's default), the short side is
    `config.short_side`. Raises QuarantineError on opening or while iterating.
    """
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise QuarantineError("undecodable", _first_line(error)) from None
    if not container.streams.video:
        container.close()
        raise QuarantineError("no_video_stream", "the container has no video stream")
    stream = container.streams.video[0]
    stream.thread_count = 1  # parallel over videos, not within one
    fps = stream.average_rate or stream.guessed_rate
    if not fps or not 0 < fps <= 1000:
        container.close()
        raise QuarantineError("undecodable", f"no usable frame rate ({fps})")
    context = stream.codec_context
    if context.width * context.height > config.max_pixels:
        container.close()
        raise QuarantineError("too_large", f"{context.width}x{context.height} pixels")
    info = VideoInfo(Fraction(fps).limit_denominator(100_000), stream.frames)
    return info, _frames(container, stream, info, config)


def _frames(container: Any, stream: Any, info: VideoInfo, config: ExtractConfig) -> Iterator[Frame]:
    decoded = written = 0
    start: Fraction | None = None
    last: Frame | None = None
    try:
        with container:
            for frame in container.decode(stream):
                decoded += 1
                if frame.is_corrupt:
                    raise QuarantineError("corrupt_frames", f"frame {decoded - 1} is corrupt")
                if frame.width * frame.height > config.max_pixels:
                    raise QuarantineError("too_large", f"{frame.width}x{frame.height} pixels")
                # A constant rate: this frame takes the next free slot at or before its time, and
                # the one before it is held over any slots between (variable rate, dropped frames).
                slot = written
                if frame.pts is not None:
                    time = frame.pts * frame.time_base
                    start = time if start is None else start
                    slot = round((time - start) * info.fps)
                if slot >= config.max_frames:
                    raise QuarantineError("too_large", f"more than {config.max_frames} frames")
                while last is not None and written < slot:
                    yield last
                    written += 1
                rgb = _canonical(frame, config.short_side)
                if last is None or slot >= written:
                    yield rgb
                    written += 1
                last = rgb
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = "corrupt_frames" if decoded else "undecodable"
        raise QuarantineError(reason, f"after {decoded} frames: {_first_line(error)}") from None
    if decoded == 0:
        raise QuarantineError("undecodable", "no frame could be decoded")
    # Edit lists hide a few declared frames; a file cut short loses many.
    if decoded < 0.9 * info.declared_frames:
        raise QuarantineError("truncated", f"{decoded} of {info.declared_frames} declared frames")


def _canonical(frame: Any, short_side: int) -> Frame:
    width, height = canonical_size(frame.width, frame.height, short_side)
    rgb = frame.to_ndarray(width=width, height=height, format="rgb24", interpolation="AREA")
    quarter_turns = round(frame.rotation / 90) % 4  # FFmpeg's sign: counter-clockwise
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
