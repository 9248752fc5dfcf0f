"""A raw video -> the frames around its key seconds, one after the other. Runs in a process of its own
(`video.guard`); no torch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vidpipe.data.layouts.common import stem
from vidpipe.inference.fetch import is_url, local_copy
from vidpipe.inference.segments import SEGMENT_BYTES, Request, Segment
from vidpipe.video.canonical import Frame
from vidpipe.video.decode import decode
from vidpipe.video.guard import Guards
from vidpipe.video.probe import check_size
from vidpipe.video.quarantine import QuarantineError

STEP_S = 1.0


@dataclass(frozen=True)
class Keys:
    """Which seconds of a video are looked at."""

    seconds: Mapping[str, Sequence[float]] | None = field(default=None)
    """Of each video by its name without the suffix; None: one every `step_s`."""
    step_s: float = STEP_S
    start_s: float = 0.0
    """Of the clock of `seconds` where videos begin."""

    def of(self, name: str) -> Iterator[float]:
        """Rising seconds of the video itself."""
        if self.seconds is None:
            number = 0
            while True:
                yield number * self.step_s
                number += 1
        yield from (second - self.start_s for second in sorted(self.seconds.get(name, ())))


def key_segments(source: str, request: Request, keys: Keys) -> Iterator[Segment]:
    """For each key second, (T, H, W, 3) frames around it, `start_s` and `end_s` the second on the keys'
    clock. `request` has one sampling; frames beyond the video are its first and last.

    Raises QuarantineError as `segments`, and `too_short` for a key second that the video does not have.
    """
    if is_url(source):
        with local_copy(source, request.scratch, request.extract, request.only_public) as path:
            yield from _of_file(path, source, request, keys)
    else:
        yield from _of_file(Path(source), source, request, keys)


def key_decoders(request: Request, keys: Keys, workers: int = 1) -> Guards[str, Segment]:
    """Processes that give them."""
    work = partial(key_segments, request=request, keys=keys)
    return Guards(work, request.extract.timeout_s, workers)


def _of_file(path: Path, source: str, request: Request, keys: Keys) -> Iterator[Segment]:
    if not path.is_file():
        raise QuarantineError("missing_file", "no such file")
    check_size(path, request.extract)
    (sampling,) = request.samplings
    before = sampling.num_frames // 2 * sampling.stride
    after = (sampling.num_frames - 1 - sampling.num_frames // 2) * sampling.stride
    fps, frames = decode(path, request.extract)
    wanted = keys.of(stem(source))
    second = next(wanted, None)
    recent: deque[Frame] = deque(maxlen=before + after + 1)
    total = 0

    def key_of(second: float) -> int:
        return round(second * float(fps))

    def segment(second: float) -> Segment:
        """While `recent` ends with frame `total - 1`."""
        indices = key_of(second) - before + np.arange(sampling.num_frames) * sampling.stride
        own = np.clip(indices, 0, total - 1) - (total - len(recent))
        kept = np.stack([recent[i] for i in own])
        positions = (np.arange(sampling.num_frames)[None],)
        at = second + keys.start_s
        return Segment(at, at, kept, positions)

    for index, frame in enumerate(frames):
        if index == 0 and (recent.maxlen or 0) * frame.nbytes > SEGMENT_BYTES:
            height, width = frame.shape[:2]
            detail = f"the frames around a second are {recent.maxlen} of {width}x{height} pixels"
            raise QuarantineError("too_large", f"{detail}, over {SEGMENT_BYTES >> 30} GiB")
        recent.append(frame)
        total = index + 1
        while second is not None and key_of(second) + after <= index:
            if key_of(second) >= 0:
                yield segment(second)
            second = next(wanted, None)
    while second is not None and 0 <= key_of(second) < total + (keys.seconds is not None):
        yield segment(second)
        second = next(wanted, None)
    if second is not None and keys.seconds is not None:
        end = math.floor(total / float(fps) * 100) / 100
        detail = f"second {second + keys.start_s:g}: the video has {keys.start_s:g} to "
        raise QuarantineError("too_short", f"{detail}{keys.start_s + end:g}")
