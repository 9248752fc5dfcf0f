"""Rendered scenes of several motions: two shapes side by side, or one shape whose motions come in turn.

Motions, looks and what a motion's reverse is are those of `rendered.py`. Each scene is written twice, as
it is and played backwards, with the labels that are then true: what can be told without the order of the
frames is the same of both.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidpipe.video.config import CLASS_PAIRS, SynthConfig
from vidpipe.video.rendered import Array, compose, coverage, draw_look, motion_poses

STILL = 0.25
"""How often one of two shapes does not move."""
TURNS = 3
"""Motions of a scene in turn."""
PAUSE_S = (0.3, 0.7)


@dataclass(frozen=True)
class Motion:
    """One motion of a clip, in frames; `end` is the first after it. `boxes` (frames of the clip, 4): x1,
    y1, x2, y2 of its shape, fractions of the frame."""

    label: str
    start: int
    end: int
    boxes: Array


class Scene(NamedTuple):
    """`frames` uint8 (T, H, W, 3); what moves in it."""

    frames: NDArray[np.uint8]
    motions: list[Motion]

    def reversed(self) -> Scene:
        """The scene played backwards: each motion is its reverse then."""
        count = len(self.frames)
        turned = [
            Motion(REVERSE[m.label], count - m.end, count - m.start, m.boxes[::-1])
            for m in reversed(self.motions)
        ]
        return Scene(np.ascontiguousarray(self.frames[::-1]), turned)

    @property
    def labels(self) -> list[str]:
        """Of all that moves in it, sorted."""
        return sorted({motion.label for motion in self.motions})


REVERSE = {one: other for a, b in CLASS_PAIRS.values() for one, other in ((a, b), (b, a))}


def count(config: SynthConfig) -> int:
    """Scenes of the data set, each of which is written forwards and backwards."""
    scenes = config.clips_per_class * len(config.pairs)
    return scenes if config.scene == "two" else max(2, round(scenes / TURNS))


def split(config: SynthConfig, index: int) -> str:
    """The last `val_fraction` of the scenes are val, in both directions."""
    scenes = count(config)
    held_out = min(max(1, round(scenes * config.val_fraction)), scenes - 1)
    return "val" if index >= scenes - held_out else "train"


def names(config: SynthConfig) -> Iterator[tuple[int, bool, str]]:
    """(index, whether it is played backwards, path) of every clip."""
    for index in range(count(config)):
        for backwards in (False, True):
            word = "backwards" if backwards else "forwards"
            yield index, backwards, f"clips/scene_{index:04d}_{word}.mp4"


def render(config: SynthConfig, index: int, backwards: bool) -> Scene:
    """One clip, a function of (config, index, backwards) alone."""
    words = [config.seed, zlib.crc32(config.scene.encode()), index]
    rng = np.random.default_rng(words)
    scene = _two(config, rng) if config.scene == "two" else _turns(config, rng)
    return scene.reversed() if backwards else scene


def key_boxes(scene: Scene, fps: int) -> Iterator[tuple[int, NDArray[np.float64], str, int]]:
    """(second, box, label, number of the shape) at each whole second within the clip, from 1 on, of the
    shapes that move and are on the frame."""
    for second in range(1, len(scene.frames) // fps + 1):
        for number, motion in enumerate(scene.motions):
            box = motion.boxes[min(second * fps, len(motion.boxes) - 1)].astype(np.float64)
            if box[2] - box[0] > 0 and motion.start <= second * fps <= motion.end:
                yield second, box, motion.label, number


def _size(config: SynthConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width, even."""
    low, high = (side // 2 for side in config.size_px)
    height, width = (2 * int(n) for n in rng.integers(low, high + 1, 2))
    return height, width


def _two(config: SynthConfig, rng: np.random.Generator) -> Scene:
    """Two pictures side by side, in each a shape that moves or does not."""
    height, width = _size(config, rng)
    frames = max(2, round(float(rng.uniform(*config.duration_s)) * config.fps))
    halves, motions = [], []
    for side in range(2):
        pair = str(rng.choice(config.pairs))
        poses = motion_poses(rng, pair, frames)
        if rng.random() < STILL:
            poses[:] = poses[frames // 2]
        look = draw_look(rng, config.noise)
        cover, cap = coverage(look.shape, poses, height, width)
        halves.append(compose(look, cover, cap, rng))
        if (poses != poses[0]).any():
            boxes = _boxes(cover)
            boxes[:, [0, 2]] = (boxes[:, [0, 2]] + side) / 2
            motions.append(Motion(CLASS_PAIRS[pair][0], 0, frames, boxes))
    return Scene(np.concatenate(halves, axis=2), motions)


def _turns(config: SynthConfig, rng: np.random.Generator) -> Scene:
    """One shape: a pause, a motion, a pause, another motion, ... Each begins where the last ended."""
    height, width = _size(config, rng)
    parts: list[Array] = []
    spans: list[tuple[str, int, int]] = []
    pose = np.array([0, 0, rng.uniform(0.13, 0.19), 0], np.float32)
    pose[:2], pose[3] = rng.uniform(-0.2, 0.2, 2), rng.uniform(-0.6, 0.6)

    def pause() -> None:
        parts.append(np.tile(pose, (max(1, round(float(rng.uniform(*PAUSE_S)) * config.fps)), 1)))

    pause()
    for _ in range(TURNS):
        pair = str(rng.choice(config.pairs))
        frames = max(2, round(float(rng.uniform(*config.duration_s)) * config.fps))
        path, backwards = _from(pose, pair, frames, rng)
        start = sum(map(len, parts))
        spans.append((CLASS_PAIRS[pair][backwards], start, start + frames))
        parts.append(path)
        pose = path[-1]
        pause()
    poses = np.concatenate(parts)
    look = draw_look(rng, config.noise)
    cover, cap = coverage(look.shape, poses, height, width)
    boxes = _boxes(cover)
    return Scene(compose(look, cover, cap, rng), [Motion(*span, boxes) for span in spans])


class _Range(NamedTuple):
    """Of one number of a pose: its place in the pose, where it stays, how far a motion goes, and whether
    the pair's first class is the one that makes it larger."""

    axis: int
    least: float
    most: float
    low: float
    high: float
    first_is_up: bool


RANGES = {
    # To the left and upwards are first, and y grows downwards; angles grow clockwise.
    "horizontal": _Range(0, -0.34, 0.34, 0.34, 0.5, False),
    "vertical": _Range(1, -0.34, 0.34, 0.34, 0.5, False),
    "scale": _Range(2, float(np.log(0.08)), float(np.log(0.32)), float(np.log(2)), 0.875, True),
    "rotation": _Range(3, -2.6, 2.6, 1.6, 2.4, True),
}
"""Of the radius the logarithm: growth is relative. A range is twice the shortest way, so that there is
always room on one side."""


def _from(pose: Array, pair: str, frames: int, rng: np.random.Generator) -> tuple[Array, bool]:
    """Poses (frames, 4) of a motion that begins at `pose`, and whether it is the pair's second class:
    the one that there is room for, or either."""
    own = RANGES[pair]
    value = float(np.log(pose[own.axis]) if pair == "scale" else pose[own.axis])
    above, below = own.most - value, value - own.least
    either = min(above, below) >= own.low
    up = bool(rng.random() < 0.5) if either else above > below
    way = min(float(rng.uniform(own.low, own.high)), above if up else below)
    moved = value + np.linspace(0, 1, frames) * (way if up else -way)
    path = np.tile(pose, (frames, 1))
    path[:, own.axis] = np.exp(moved) if pair == "scale" else moved
    return path.astype(np.float32), up != own.first_is_up


def _boxes(cover: Array) -> Array:
    """(T, H, W) shares of pixels -> (T, 4) x1, y1, x2, y2, fractions of the frame."""
    found = []
    for frame in cover >= 0.5:
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        if len(rows) == 0:  # off the frame
            found.append([0.0, 0.0, 0.0, 0.0])
            continue
        height, width = frame.shape
        found.append(
            [
                columns[0] / width,
                rows[0] / height,
                (columns[-1] + 1) / width,
                (rows[-1] + 1) / height,
            ]
        )
    return np.array(found, np.float32)
