"""Clips whose frames can be told apart, encoded and decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidpipe.video.encode import Encoded
from vidpipe.video.readers import read_jpegs


def moving(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3): a smooth pattern that moves, so every frame differs from every other."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    wave = 127 + 120 * np.sin((x + 2 * t) / 9) * np.cos(y / 11 + t / 17)
    return np.stack([wave, 255 - wave, np.roll(wave, 5, 1)], -1).astype(np.uint8)


def jpegs(clip: Encoded, indices: Sequence[int]) -> np.ndarray:
    return read_jpegs(lambda parts: [clip.data[a:b] for a, b in parts], clip.frames, indices)
