"""Which frames of a video make a clip. Pure functions of the length, a random source and the rule."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.config import SamplingConfig

Indices = NDArray[np.int64]


def train_indices(length: int, config: SamplingConfig, uniforms: NDArray[np.float64]) -> Indices:
    """Frame indices (T,) of a training clip from a video of `length` frames.

    `uniforms` are T draws in [0, 1): `uniform` takes a random frame of each of T equal segments
    (TSN's rule), `dense` a random start (its first draw) and then every `stride`-th frame.
    """
    t = config.num_frames
    if config.strategy == "uniform":
        return _segments(length, t, uniforms)
    starts = max(1, length - _span(config) + 1)
    return _dense(int(uniforms[0] * starts), length, config)


def test_indices(length: int, config: SamplingConfig, temporal_clips: int) -> Indices:
    """Frame indices (temporal_clips, T): `uniform` takes the segments' middles, `dense` clips at
    equal distances from the first possible start to the last (one clip: the middle)."""
    if config.strategy == "uniform":
        return _segments(length, config.num_frames, np.full(config.num_frames, 0.5))[None]
    last = max(0, length - _span(config))
    fractions = [0.5] if temporal_clips == 1 else np.linspace(0, 1, temporal_clips)
    return np.stack([_dense(round(last * f), length, config) for f in fractions])


def _span(config: SamplingConfig) -> int:
    return (config.num_frames - 1) * config.stride + 1


def _segments(length: int, t: int, uniforms: NDArray[np.float64]) -> Indices:
    indices = ((np.arange(t) + uniforms) * length / t).astype(np.int64)
    return np.minimum(indices, length - 1)


def _dense(start: int, length: int, config: SamplingConfig) -> Indices:
    indices = start + np.arange(config.num_frames) * config.stride
    return indices % length if config.short_clips == "loop" else np.minimum(indices, length - 1)
