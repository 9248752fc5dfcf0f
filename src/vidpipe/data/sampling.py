"""Which frames of a video make a clip: pure functions of the length, draws in [0, 1) and the rule.

`sampling.rule` says whose arithmetic decides. The papers give the idea only; the rules here are
those of the released code, to the frame, because a head trained on one set of frames loses by
being tested on another:

- `vidpipe`: uniform takes a frame of each of T equal segments (TSN), dense clips reach from the
  first possible start to the last. `short_clips` decides what follows the end.
- `aim`: MMAction2 0.x `SampleFrames`, whose span is T * stride, a stride longer than the frames
  need. Its uniform data sets (Something-Something, Diving48) set `frame_uniform`, which is
  PySlowFast's rule for Something-Something.
- `st_adapter`: `video_dataset/dataset.py`; dense repeats the end, whatever `short_clips` says.
- `zeroi2v`: MMAction2 1.x `SampleFrames`, which spans T * stride in training and (T - 1) * stride + 1
  in testing, and `UniformSample`.

In `aim` and `zeroi2v`, `repeat_last` repeats the last frame that was sampled, not the video's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.config import SamplingConfig

Indices = NDArray[np.int64]


def train_indices(length: int, config: SamplingConfig, uniforms: NDArray[np.float64]) -> Indices:
    """Frame indices (T,) of a training clip from a video of `length` frames.

    `uniforms` are T draws in [0, 1): uniform spends one on each frame, dense its first on the start;
    with `train_frames: middle` nothing is drawn.
    """
    if config.train_frames == "middle":
        return cast(Indices, test_indices(length, config, 1)[0])
    t, stride = config.num_frames, config.stride
    if config.strategy == "uniform":
        if config.rule == "vidpipe":
            return _segments(length, t, uniforms)
        first, last = _inclusive_segments(length, t)
        return first + (uniforms * (last - first + 1)).astype(np.int64)
    span = t * stride if config.rule in ("aim", "zeroi2v") else (t - 1) * stride + 1
    starts = max(1, length - span + 1)
    clip = int(uniforms[0] * starts) + np.arange(t) * stride
    if config.rule == "vidpipe":
        return _wrap(clip, length) if config.short_clips == "loop" else _clamp(clip, length)
    if config.rule != "st_adapter" and config.short_clips == "loop":
        return _wrap(clip, length)
    return _repeat(clip, length)


def test_indices(length: int, config: SamplingConfig, temporal_clips: int) -> Indices:
    """Frame indices (temporal_clips, T) of the clips of an evaluation; (1, T) where it is uniform.

    Uniform takes the middle of each segment, dense starts at regular distances.
    """
    if config.strategy == "uniform":
        return _middles(length, config)[None]
    starts = np.array(_test_starts(length, config, temporal_clips), dtype=np.int64)
    clips = starts[:, None] + np.arange(config.num_frames) * config.stride
    if config.rule == "st_adapter":
        return _clamp(clips, length)
    if config.short_clips == "loop":
        return _wrap(clips, length)
    return _clamp(clips, length) if config.rule == "vidpipe" else _repeat(clips, length)


def _middles(length: int, config: SamplingConfig) -> Indices:
    t = config.num_frames
    if config.rule == "vidpipe":
        return _segments(length, t, np.full(t, 0.5))
    first, last = _inclusive_segments(length, t)
    if config.rule == "zeroi2v":
        return first + int((length - 1) / t / 2)
    return (first + last) // 2


def _test_starts(length: int, config: SamplingConfig, n: int) -> Sequence[int]:
    t, stride = config.num_frames, config.stride
    last = max(0, length - ((t - 1) * stride + 1))
    if config.rule == "vidpipe":
        return [round(last * f) for f in ([0.5] if n == 1 else np.linspace(0, 1, n))]
    if config.rule == "st_adapter":
        return [last // 2] if n == 1 else [round(last / (n - 1) * i) for i in range(n)]
    if config.rule == "zeroi2v" and t > 1:
        return [last // 2] if n == 1 else [round(i * (last / (n - 1))) for i in range(n)]
    # AIM, and MMAction2 1.x for clips of one frame: the middles of n equal parts of the starts.
    span = t * stride if config.rule == "aim" else 1
    interval = max(0, length - span + 1) / n
    return [int(i * interval + interval / 2) for i in range(n)]


def _segments(length: int, t: int, uniforms: NDArray[np.float64]) -> Indices:
    indices = ((np.arange(t) + uniforms) * length / t).astype(np.int64)
    return np.minimum(indices, length - 1)


def _inclusive_segments(length: int, t: int) -> tuple[Indices, Indices]:
    """First and last frame of T segments that share their borders (PySlowFast's Something-Something
    rule, in all three code bases); borders are rounded half to even, as Python and NumPy do."""
    borders = np.round((length - 1) / t * np.arange(t + 1)).astype(np.int64)
    return borders[:-1], borders[1:]


def _wrap(indices: Indices, length: int) -> Indices:
    return indices % length


def _clamp(indices: Indices, length: int) -> Indices:
    return np.minimum(indices, length - 1)


def _repeat(indices: Indices, length: int) -> Indices:
    """Indices past the end become the last of their clip that is not."""
    last = np.where(indices < length, indices, 0).max(-1, keepdims=True)
    return np.where(indices < length, indices, last)
