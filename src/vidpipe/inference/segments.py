"""A raw video -> the frames that models are to see of each of its segments, in bounded memory.

The frames are those of extraction (`video.decode`), the indices those of evaluation
(`data.sampling.test_indices`). Runs in a process of its own (`video.guard`); no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.config import SamplingConfig
from vidpipe.data.sampling import Indices, test_indices
from vidpipe.inference.fetch import is_url, local_copy
from vidpipe.video.canonical import Frame
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode
from vidpipe.video.guard import Guards
from vidpipe.video.probe import check_size
from vidpipe.video.quarantine import QuarantineError

RECENT_BYTES = 2**28
"""Of decoded frames kept in case they are wanted. A video that has more is decoded a second time."""
SEGMENT_BYTES = 2**31
"""Of the frames of one segment: more is refused (`too_large`), whatever the models ask for."""


@dataclass(frozen=True)
class Request:
    """What is wanted of each video."""

    extract: ExtractConfig
    samplings: tuple[SamplingConfig, ...]
    """Of the models, each once."""
    temporal_clips: int = 1
    window_s: float | None = None
    """None: the whole video is one segment."""
    step_s: float | None = None
    """Between starts of windows; None: `window_s`, side by side."""
    scratch: Path | None = None
    """Where videos from URLs lie while they are decoded."""
    only_public: bool = False
    """Whether no URL may lead to an address of this machine or its network, not even by its name."""


class Segment(NamedTuple):
    start_s: float
    end_s: float
    frames: NDArray[np.uint8]
    """(U, H, W, 3): each frame that any model wants, once."""
    positions: tuple[Indices, ...]
    """For each sampling, (clips, T) indices into `frames`."""


class Work(Protocol):
    def __call__(self, source: str, request: Request) -> Iterator[Segment]: ...


def segments(source: str, request: Request) -> Iterator[Segment]:
    """The segments of a local file or URL, in order; together they cover it.

    Windows of `window_s` start every `step_s`; the last one is moved back to end with the video. A
    video shorter than one window is one segment. Raises QuarantineError on opening or while
    iterating: damage far into the file comes after the segments before it.
    """
    if is_url(source):
        with local_copy(source, request.scratch, request.extract, request.only_public) as path:
            yield from _of_file(path, request)
    else:
        yield from _of_file(Path(source), request)


def decoders(request: Request, workers: int = 1, work: Work = segments) -> Guards[str, Segment]:
    """Processes that give the segments of files and URLs. `work` stands for other decoders, in tests."""
    return Guards(partial(work, request=request), request.extract.timeout_s, workers)


def _of_file(path: Path, request: Request) -> Iterator[Segment]:
    if not path.is_file():
        raise QuarantineError("missing_file", "no such file")
    check_size(path, request.extract)
    fps, frames = decode(path, request.extract)
    window = step = None
    if request.window_s is not None:
        window = max(1, round(request.window_s * fps))
        step = max(1, round((request.step_s or request.window_s) * fps))

    def check_memory(count: int, frame: Frame) -> None:
        if count * frame.nbytes > SEGMENT_BYTES:
            height, width = frame.shape[:2]
            detail = f"a segment has {count} frames of {width}x{height} pixels"
            raise QuarantineError("too_large", f"{detail}, over {SEGMENT_BYTES / 2**30:g} GiB")

    def segment(start: int, length: int, kept: Sequence[Frame]) -> Segment:
        _, positions = frames_wanted(length, request)
        return Segment(float(start / fps), float((start + length) / fps), np.stack(kept), positions)

    wanted = frames_wanted(window, request)[0] if window else ()
    inside = frozenset(wanted)
    filling: deque[tuple[int, list[Frame]]] = deque()  # start of a window, its frames so far
    recent: deque[Frame] = deque(maxlen=window)
    total = covered = 0
    for index, frame in enumerate(frames):
        if index == 0:
            check_memory(len(wanted), frame)
        total = index + 1
        recent.append(frame)
        if len(recent) * frame.nbytes > RECENT_BYTES:
            recent.popleft()
        if window is None or step is None:
            continue
        if index % step == 0:
            filling.append((index, []))
        for start, kept in filling:
            if index - start in inside:
                kept.append(frame)
        if filling and filling[0][0] + window == total:
            start, kept = filling.popleft()
            covered = total
            yield segment(start, window, kept)
    if total < request.extract.min_frames:
        detail = f"{total} frames, fewer than {request.extract.min_frames}"
        raise QuarantineError("too_short", detail)
    if covered == total:
        return
    start = max(0, total - window) if window else 0
    length = total - start
    indices = [start + i for i in frames_wanted(length, request)[0]]
    check_memory(len(indices), frame)
    first = total - len(recent)
    if indices[0] >= first:
        yield segment(start, length, [recent[i - first] for i in indices])
    else:
        recent.clear()
        yield segment(start, length, _read_again(path, indices, request.extract))


def frames_wanted(length: int, request: Request) -> tuple[list[int], tuple[Indices, ...]]:
    """Of a segment of `length` frames: the frames wanted, sorted, and where each clip finds its own."""
    each = [test_indices(length, s, request.temporal_clips) for s in request.samplings]
    unique, where = np.unique(np.concatenate([i.ravel() for i in each]), return_inverse=True)
    ends = np.cumsum([i.size for i in each])[:-1]
    parts = np.split(where.ravel(), ends)
    positions = tuple(p.reshape(i.shape) for p, i in zip(parts, each, strict=True))
    return unique.tolist(), positions


def _read_again(path: Path, indices: Sequence[int], config: ExtractConfig) -> list[Frame]:
    wanted = frozenset(indices)
    _, frames = decode(path, config)
    kept = [frame for index, frame in enumerate(frames) if index in wanted]
    if len(kept) != len(wanted):
        raise QuarantineError("corrupt_frames", "two passes over it give different frames")
    return kept
