"""Reading untrusted video files: sequential PyAV decode, canonical frames, every doubt a reason.

FFmpeg is silent about much damage, so a file is believed only when the container is whole (probe),
no frame is marked corrupt, the decoder raises and logs nothing, and the packets give frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from vidpipe.video.canonical import Canonical, Frame
from vidpipe.video.config import ExtractConfig
from vidpipe.video.probe import (
    Probe,
    check_pixels,
    errors_of,
    ffmpeg_log,
    first_line,
    opened,
    probe,
)
from vidpipe.video.quarantine import QuarantineError, Reason

JUMP_S = 10
"""A longer pause, or any step this far back, is a splice in the time stamps, not a still picture."""


def decode(path: Path, config: ExtractConfig) -> tuple[Fraction, Iterator[Frame]]:
    """Open `path`; returns its frames per second, and (H, W, 3) uint8 RGB frames at that rate.

    Rotation is applied, edit lists are honoured (FFmpeg's default), the short side is
    `config.short_side`. Raises QuarantineError on opening or while iterating.
    """
    found = probe(path, config)
    fps = found.fps if config.fps is None else Fraction(config.fps).limit_denominator(1000)
    return fps, _paced(_decoded(path, found, config), found, fps, config)


def _decoded(
    path: Path, found: Probe, config: ExtractConfig
) -> Iterator[tuple[Fraction | None, Frame]]:
    """Time in seconds (None where unknown) and picture of every frame, in order of display."""
    decoded = 0
    with opened(path) as container:
        stream = container.streams[found.stream]
        stream.thread_count = 1  # parallel over videos, not within one
        # Without it, FFmpeg paints over what it cannot decode.
        stream.codec_context.options = {"err_detect": "explode+crccheck+bitstream+buffer"}
        decoder = stream.codec_context.name
        aspect = stream.sample_aspect_ratio
        canonical = Canonical(config.short_side, aspect)
        # Not from before the opening, where FFmpeg tries its decoder on the first packets, leniently.
        with ffmpeg_log() as messages:
            try:
                for frame in container.decode(stream):
                    decoded += 1
                    if frame.is_corrupt:
                        raise QuarantineError("corrupt_frames", f"frame {decoded - 1} is corrupt")
                    check_pixels(frame.width, frame.height, aspect, config)
                    time = None if frame.pts is None else frame.pts * frame.time_base
                    yield time, canonical(frame)
            except (av.FFmpegError, OSError, ValueError) as error:
                some = decoded or _any_frame(path, found)
                reason: Reason = "corrupt_frames" if some else "undecodable"
                detail = f"after {decoded} frames: {first_line(error)}"
                raise QuarantineError(reason, detail) from None
    if decoded == 0:
        raise QuarantineError("undecodable", "no frame could be decoded")
    if complaints := errors_of(decoder, messages):
        raise QuarantineError("corrupt_frames", f"decoder: {complaints[0]}")
    # Some codecs pack hidden frames, or both fields of a picture, into packets of their own.
    if decoded < 0.45 * found.packets:
        detail = f"{decoded} frames from {found.packets} packets"
        raise QuarantineError("corrupt_frames", detail)


def _any_frame(path: Path, found: Probe) -> bool:
    """Whether a lenient decoder gets anything: a damaged video, or none at all."""
    try:
        with opened(path) as container:
            stream = container.streams[found.stream]
            stream.thread_count = 1
            return any(True for _ in container.decode(stream))
    except (av.FFmpegError, OSError, ValueError, QuarantineError):
        return False


def _paced(
    frames: Iterator[tuple[Fraction | None, Frame]],
    found: Probe,
    fps: Fraction,
    config: ExtractConfig,
) -> Iterator[Frame]:
    """A constant rate: slot k holds what a player shows k / fps after the first frame.

    Without usable time stamps frames are 1 / `found.fps` apart.
    """
    jitter = fps / found.fps / 4  # a frame may come a quarter of its duration late
    start: Fraction | None = None
    held: Frame | None = None
    slot = 0  # from which `held` is shown
    time = Fraction(0)
    for index, (stamp, picture) in enumerate(frames):
        time = stamp if found.timed and stamp is not None else index / found.fps
        start = time if start is None else start
        due = math.ceil((time - start) * fps - jitter)
        if held is not None and abs(due - slot) > max(float(JUMP_S * fps), 1.0):
            due = slot + 1
            start = time - due / fps
        if due >= config.max_frames:
            raise QuarantineError("too_large", f"more than {config.max_frames} frames")
        if held is not None:
            for _ in range(slot, due):
                yield held
        if due >= slot:
            held, slot = picture, due
    # The last frame is shown for its own duration.
    end = time - (start or 0) + 1 / found.fps
    if held is not None and (slot == 0 or slot / fps < end):
        yield held
