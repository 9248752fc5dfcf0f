"""Rendered clips whose class is nothing but the direction of time, and stills of the same family.

Classes come in pairs. The second member of a pair is the first one played backwards, frame for
frame, so a clip and its partner hold exactly the same set of frames: a model that ignores the
order of the frames cannot beat 50 % inside a pair, whatever its features are.

Lengths in a frame are in units of its short side, measured from the frame's centre (x to the
right, y down, so the central square spans -0.5 .. 0.5). Angles are in radians and grow clockwise
on the screen. Colours are RGB in 0 .. 1; frames are uint8 RGB, shape (T, H, W, 3).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidpipe.video.config import CLASS_PAIRS, SynthConfig

Array = NDArray[np.float32]

CAP = -0.2  # in radii: what lies above this line is white, like the north end of a compass needle
SHAPES = ("triangle", "arrow", "drop", "circle", "square", "star", "cross", "ring", "bar")


class ClipRow(NamedTuple):
    """One line of labels.csv; path is relative to the data set's folder, with forward slashes."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Look:
    """What one scene looks like, apart from the pose of its object."""

    shape: str
    colour: Array  # (3,)
    background: Array  # (3,) mean colour
    gradient: Array  # (2, 3) colour change per unit of x and of y
    waves: Array  # (K, 4): frequency in x and in y (rad per unit), phase, amplitude
    noise: float  # standard deviation in grey levels


def _exactly(function: Callable[..., Any], *x: Array) -> Array:
    """`function` in fp64, rounded: numpy's in fp32 end in other bits on other processors, and with
    them pixels, files and everything that is named after their content."""
    return np.asarray(function(*(each.astype(np.float64) for each in x)), np.float32)


def _box(x: Array, y: Array, half_x: float, half_y: float) -> Array:
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _fan(x: Array, y: Array, tip: float, base: float, half: float) -> Array:
    """Isosceles triangle with its tip at (0, tip) above its base of width 2 * half."""
    norm = float(np.hypot(base - tip, half))
    side = (np.abs(x) * (base - tip) - (y - tip) * half) / norm
    return np.maximum(side, y - base)


def _distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance (negative inside) to a shape of radius about 1 that points up.

    Exact beside the edges and a bound elsewhere, which is all that anti-aliasing needs.
    """
    if shape == "triangle":
        return _fan(x, y, -1.1, 0.8, 0.75)
    if shape == "arrow":
        head = _fan(x, y, -1.1, 0.0, 0.85)
        return np.minimum(head, _box(x, y - np.float32(0.45), 0.28, 0.5))
    if shape == "drop":
        ball = np.hypot(x, y - np.float32(0.35)) - np.float32(0.62)
        return np.minimum(ball, _fan(x, y, -1.15, 0.13, 0.56))
    if shape == "circle":
        return np.hypot(x, y) - np.float32(0.9)
    if shape == "square":
        return _box(x, y, 0.75, 0.75)
    if shape == "cross":
        return np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))
    if shape == "ring":
        return np.abs(np.hypot(x, y) - np.float32(0.7)) - np.float32(0.25)
    if shape == "bar":
        return _box(x, y, 0.3, 1.05)
    if shape == "star":
        # Fold the plane onto one half of one of the five points, then one straight edge is left.
        radius = np.hypot(x, y)
        fifth = np.float32(2 * np.pi / 5)
        turn = np.abs(np.mod(_exactly(np.arctan2, x, -y) + fifth / 2, fifth) - fifth / 2)
        px, py = radius * _exactly(np.sin, turn), radius * _exactly(np.cos, turn)
        inner = 0.5  # radius of the notches; the points reach 1.1
        ex, ey = inner * np.sin(np.pi / 5), inner * np.cos(np.pi / 5) - 1.1
        return (-(px * ey) + (py - np.float32(1.1)) * ex) / np.float32(np.hypot(ex, ey))
    raise ValueError(f"unknown shape {shape!r}")


def draw_look(rng: np.random.Generator, noise: float) -> Look:
    """Draw shape, colours and background of one scene; the object is the brighter of the two."""
    grey = np.array([0.299, 0.587, 0.114])
    while True:
        colour, background = rng.uniform(0.05, 0.9, 3), rng.uniform(0.05, 0.6, 3)
        # 4:2:0 video keeps colour at half resolution, so colour alone would blur the outline.
        if float(grey @ background) < 0.4 and float(grey @ (colour - background)) > 0.15:
            break
    kind = rng.choice(3)  # plain, gradient, gradient with a mild texture
    gradient = rng.uniform(-0.2, 0.2, (2, 3)) * (kind > 0)
    waves = rng.uniform([-40, -40, 0, 0.01], [40, 40, 2 * np.pi, 0.035], (3, 4))
    return Look(
        shape=SHAPES[int(rng.integers(len(SHAPES)))],
        colour=colour.astype(np.float32),
        background=background.astype(np.float32),
        gradient=gradient.astype(np.float32),
        waves=waves.astype(np.float32)[: 3 if kind == 2 else 0],
        noise=float(rng.uniform(0, noise)),
    )


def coverage(
    shape: str, poses: Array, height: int, width: int, blur: float = 1.0
) -> tuple[Array, Array]:
    """Share of each pixel that the object, and that its white cap covers: twice (T, H, W), 0 .. 1.

    poses is (T, 4): x, y, radius, angle. The edge is a ramp of blur pixels over the signed
    distance, so that motion of a fraction of a pixel changes the frame. The cap is the part of the
    object above a line, so that every shape shows its angle.
    """
    short = min(height, width)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short).astype(np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short).astype(np.float32)
    cx, cy, radius, angle = (poses[:, i, None, None].astype(np.float32) for i in range(4))
    dx, dy = (x[None, None, :] - cx) / radius, (y[None, :, None] - cy) / radius
    cos, sin = _exactly(np.cos, angle), _exactly(np.sin, angle)
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    per_pixel = radius * np.float32(short / blur)
    cover = np.clip(0.5 - _distance(shape, x, y) * per_pixel, 0, 1)
    cap = cover * np.clip(0.5 - (y - np.float32(CAP)) * per_pixel, 0, 1)
    return cover.astype(np.float32), cap.astype(np.float32)


def backdrop(look: Look, height: int, width: int) -> Array:
    """The static background, (H, W, 3) in 0 .. 1 before clipping."""
    short = min(height, width)
    x = ((np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short).astype(np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short).astype(np.float32)
    image = x[None, :, None] * look.gradient[0] + y[:, None, None] * look.gradient[1]
    for fx, fy, phase, amplitude in look.waves:
        wave = _exactly(np.sin, fx * x[None, :] + fy * y[:, None] + phase)
        image = image + (amplitude * wave)[..., None]
    return np.asarray(np.broadcast_to(image, (height, width, 3)) + look.background, np.float32)


def compose(look: Look, cover: Array, cap: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Object over background plus fresh noise per frame; both (T, H, W) -> uint8 (T, H, W, 3)."""
    behind = backdrop(look, *cover.shape[1:])
    frames = behind + cover[..., None] * (look.colour - behind)
    frames += cap[..., None] * (np.float32(1) - look.colour)
    frames *= np.float32(255)
    # Independent from frame to frame: noise with a memory would tell forwards from backwards.
    frames += rng.standard_normal(frames.shape, dtype=np.float32) * np.float32(look.noise)
    return np.clip(frames + np.float32(0.5), 0, 255).astype(np.uint8)


def motion_poses(rng: np.random.Generator, pair: str, frames: int) -> Array:
    """Poses (T, 4) of the pair's first class: one of the four numbers moves at constant speed."""
    x, y = rng.uniform(-0.22, 0.22, 2)
    radius = rng.uniform(0.12, 0.2)
    angle = rng.uniform(-np.pi, np.pi)
    poses = np.tile(np.array([x, y, radius, angle]), (frames, 1))
    # Start and end are drawn about the same middle, so reversal maps the family onto itself.
    middle, travel = rng.uniform(-0.06, 0.06), rng.uniform(0.36, 0.56)
    ramp = np.linspace(-0.5, 0.5, frames)
    if pair == "horizontal":
        poses[:, 0] = middle - ramp * travel
    elif pair == "vertical":
        poses[:, 1] = middle - ramp * travel
    elif pair == "scale":
        # Constant relative growth: by a factor of 2.0 .. 2.6 about a radius of 0.14 .. 0.18.
        poses[:, 2] = rng.uniform(0.14, 0.18) * np.exp(ramp * np.log(rng.uniform(2.0, 2.6)))
    else:
        # About upright, within a third of a turn: an angle that stays clear of the wrap-around.
        poses[:, 2] = rng.uniform(0.16, 0.24)
        poses[:, 3] = middle * 4 + ramp * rng.uniform(1.6, 2.4)
    return poses.astype(np.float32)


def _pair_of(class_name: str) -> tuple[str, bool]:
    for pair, names in CLASS_PAIRS.items():
        if class_name in names:
            return pair, class_name == names[1]
    raise ValueError(f"unknown class {class_name!r}")


def render_clip(config: SynthConfig, class_name: str, index: int) -> NDArray[np.uint8]:
    """Frames of one clip, uint8 (T, H, W, 3), a function of (config, class_name, index) alone.

    The two members of a pair share their scene at the same index; the second is reversed.
    """
    pair, reverse = _pair_of(class_name)
    # The pair enters by its name, so choosing fewer pairs does not change the clips of the others.
    rng = np.random.default_rng([config.seed, zlib.crc32(pair.encode()), index])
    half = [s // 2 for s in config.size_px]
    width, height = (2 * int(n) for n in rng.integers(half[0], half[1] + 1, 2))
    frames = max(2, round(float(rng.uniform(*config.duration_s)) * config.fps))
    look = draw_look(rng, config.noise)
    cover, cap = coverage(look.shape, motion_poses(rng, pair, frames), height, width)
    clip = compose(look, cover, cap, rng)
    return np.ascontiguousarray(clip[::-1] if reverse else clip)


def render_still(
    rng: np.random.Generator, size: int, noise: float = 6.0
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """One square picture (size, size, 3) of the same family and the truth about it; no motion.

    The targets: shape (index into SHAPES), x, y and radius (short sides), sin and cos of the
    angle, colour (3,) of the part below the cap, and coverage (size, size).
    """
    look = draw_look(rng, noise)
    x, y = rng.uniform(-0.42, 0.42, 2)
    radius, angle = rng.uniform(0.08, 0.3), rng.uniform(-np.pi, np.pi)
    pose = np.array([[x, y, radius, angle]], np.float32)
    # A frame that was scaled down to size is a little softer or sharper than one drawn at size.
    cover, cap = coverage(look.shape, pose, size, size, blur=float(rng.uniform(0.8, 1.8)))
    targets = {
        "shape": SHAPES.index(look.shape),
        "x": float(x),
        "y": float(y),
        "radius": float(radius),
        "sin": float(np.sin(angle)),
        "cos": float(np.cos(angle)),
        "colour": look.colour,
        "coverage": cover[0],
    }
    return compose(look, cover, cap, rng)[0], targets


def clip_row(config: SynthConfig, class_name: str, index: int) -> ClipRow:
    """Path, label and split of one clip: the last val_per_class scenes of every class are val."""
    val = index >= config.clips_per_class - config.val_per_class
    # Both members of a pair put the same scenes in val, so no scene is on both sides of the split.
    return ClipRow(
        f"{class_name}/{class_name}_{index:04d}.mp4", class_name, "val" if val else "train"
    )


def clip_list(config: SynthConfig) -> list[ClipRow]:
    """All rows of labels.csv, class by class."""
    return [
        clip_row(config, name, index)
        for name in config.classes
        for index in range(config.clips_per_class)
    ]


def write_clip(path: Path, frames: NDArray[np.uint8], fps: int, crf: int) -> None:
    """Write frames (T, H, W, 3), H and W even, as an H.264 yuv420p MP4; same input, same bytes."""
    import av

    from vidpipe.video.encode import REPRODUCIBLE, mux_h264

    # Not tempfile's: a folder of clips is flushed as a whole by whoever makes it whole.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with av.open(str(part), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            options = {"crf": str(crf), "preset": "fast", **REPRODUCIBLE}
            # One thread: with more, x264's choices (and so the bytes) depend on the machine.
            for _ in mux_h264(container, frames, Fraction(fps), options, threads=1):
                pass
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
