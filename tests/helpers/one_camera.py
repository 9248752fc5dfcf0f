"""Clips that differ by nothing but what moves in them: all are filmed by one camera."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 72, 96


def filmed(seed: int, frames: int = 40, speed: float = 1.0) -> NDArray[np.uint8]:
    """(frames, HEIGHT, WIDTH, 3): a blob on a path of its own before the same wall, and grain."""
    wall = np.random.default_rng(0).normal(120, 25, (9, 12))
    wall = np.kron(wall, np.ones((8, 8)))
    rng = np.random.default_rng(seed + 1)
    places = rng.uniform(0.15, 0.85, (6, 2)) * (HEIGHT, WIDTH)
    when = np.linspace(0, 5, frames) * speed
    path = np.stack([np.interp(when, range(6), places[:, axis]) for axis in range(2)], 1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    clip = np.repeat(wall[None], frames, 0)
    for t, (cy, cx) in enumerate(path):
        size = 6 + 2 * np.sin(t / 3 + seed)
        clip[t][(y - cy) ** 2 / 3 + (x - cx) ** 2 < size**2] = 30 + 20 * (seed % 3)
    clip += rng.normal(0, 1.5, clip.shape)
    return np.repeat(clip.round().clip(0, 255).astype(np.uint8)[..., None], 3, 3)
