"""A raw video -> what a page shows of it: segments for models, and a copy that every browser plays.

The copy has the canonical frames' clock: it begins with the first picture and its rate is constant, so
seconds of segments are seconds of it. Runs in a process of its own (`video.guard`); no torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av

from vidpipe.inference.key_frames import Keys, key_segments
from vidpipe.inference.segments import Request, Segment, segments
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode
from vidpipe.video.encode import mux_h264
from vidpipe.video.probe import probe

SHORT_SIDE, FASTEST = 360, 30
"""Of the copy: pixels, and frames a second at most."""
MUXING: dict[str, str] = {"movflags": "+faststart"}
ENCODING: dict[str, Any] = {"preset": "veryfast", "crf": "26", "g": "50", "threads": "1"}
BEAT = 100
"""Frames between two signs of life."""
STEPS, MOST_WINDOWS = 4, 240
"""Windows begin a window's length over STEPS apart where no step is given, farther apart where a video
would have more than so many of them."""


class Film(NamedTuple):
    """The copy."""

    path: Path
    seconds: float
    width: int
    height: int


class Part(NamedTuple):
    """A window, or the frames around a key second."""

    number: int
    """Of the window's request in `Plan.windows`; 0 of key seconds."""
    segment: Segment


@dataclass(frozen=True)
class Plan:
    """What is wanted of each video, in this order."""

    folder: Path
    """For the copy."""
    request: Request
    whole: bool = True
    """Whether the video as one segment is wanted."""
    windows: tuple[Request, ...] = ()
    """Each with a window and perhaps a step."""
    keys: Keys | None = None


def scenes(source: str, plan: Plan) -> Iterator[Segment | float | Film | Part]:
    """The whole of a local file as a Segment, its copy, and its Parts; in between, seconds that are
    encoded so far. Raises QuarantineError as `segments` does."""
    if plan.whole:
        yield from segments(source, plan.request)
    seconds = 0.0
    for found in browser_copy(Path(source), plan.folder, plan.request.extract):
        seconds = found.seconds if isinstance(found, Film) else found
        yield found
    for number, request in enumerate(plan.windows):
        window = request.window_s or seconds
        step = request.step_s or min(window, max(window / STEPS, seconds / MOST_WINDOWS))
        for segment in segments(source, replace(request, window_s=window, step_s=step)):
            yield Part(number, segment)
    if plan.keys is not None:
        for segment in key_segments(source, plan.request, plan.keys):
            yield Part(0, segment)


def browser_copy(path: Path, folder: Path, extract: ExtractConfig) -> Iterator[float | Film]:
    """H.264 in an MP4 with a random name in `folder`; seconds of it so far, and at last the Film.

    A half-written copy is removed. Raises QuarantineError as `decode` does.
    """
    fps = min(probe(path, extract).fps, Fraction(FASTEST)).limit_denominator(1000)
    fps, frames = decode(path, _seen_by_people(extract, fps))
    handle, name = tempfile.mkstemp(".mp4", "film-", folder)
    os.close(handle)
    count = width = height = 0
    try:
        with av.open(name, "w", format="mp4", options=MUXING) as container:
            for written in mux_h264(container, frames, fps, ENCODING):
                count, width, height = written
                if count % BEAT == 0:
                    yield float(count / fps)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    yield Film(Path(name), float(count / fps), width, height)


def _seen_by_people(extract: ExtractConfig, fps: Fraction) -> ExtractConfig:
    return extract.model_copy(update={"short_side": SHORT_SIDE, "fps": float(fps)})
