"""The embedded data set: only the direction of time tells the classes of a pair apart."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.stages import synth
from vidpipe.video.config import CLASS_PAIRS, SynthConfig
from vidpipe.video.rendered import (
    SHAPES,
    clip_list,
    coverage,
    render_clip,
    render_still,
    write_clip,
)

CONFIG = SynthConfig()


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def centroid(mask: np.ndarray) -> tuple[float, float]:
    y, x = np.indices(mask.shape)
    return float((x * mask).sum() / mask.sum()), float((y * mask).sum() / mask.sum())


@pytest.mark.parametrize("pair", CLASS_PAIRS)
@settings(max_examples=8, deadline=None)
@given(index=st.integers(0, 10_000), seed=st.integers(0, 1000))
def test_partner_is_the_same_clip_backwards(pair: str, index: int, seed: int) -> None:
    config = SynthConfig(seed=seed)
    first, second = (render_clip(config, name, index) for name in CLASS_PAIRS[pair])
    assert np.array_equal(first[::-1], second)
    assert not np.array_equal(first, second)


@settings(max_examples=20, deadline=None)
@given(index=st.integers(0, 10_000), name=st.sampled_from(CONFIG.classes))
def test_clip_is_within_what_the_config_says(index: int, name: str) -> None:
    frames = render_clip(CONFIG, name, index)
    length, height, width, channels = frames.shape
    low, high = (round(s * CONFIG.fps) for s in CONFIG.duration_s)
    assert frames.dtype == np.uint8
    assert channels == 3
    assert low <= length <= high
    assert all(s % 2 == 0 and CONFIG.size_px[0] <= s <= CONFIG.size_px[1] for s in (height, width))


def test_clip_depends_on_seed_class_and_index_only() -> None:
    clip = render_clip(CONFIG, "grow", 3)
    assert np.array_equal(clip, render_clip(CONFIG, "grow", 3))
    few = SynthConfig(pairs=("scale",), clips_per_class=4)
    assert np.array_equal(clip, render_clip(few, "grow", 3))
    assert not np.array_equal(clip[0], render_clip(CONFIG, "grow", 4)[0, : clip.shape[1]])
    other = render_clip(SynthConfig(seed=1), "grow", 3)
    assert other.shape != clip.shape or not np.array_equal(clip, other)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("move_left", (-1, 0)), ("move_right", (1, 0)), ("move_up", (0, -1)), ("move_down", (0, 1))],
)
def test_names_say_what_is_seen(name: str, expected: tuple[int, int]) -> None:
    clip = render_clip(SynthConfig(noise=0), name, 0).astype(float)
    # Only the object moves, so what differs between the two ends is the object, twice.
    change = (clip[-1] - clip[0]).sum(-1)
    (x1, y1), (x0, y0) = centroid(change.clip(min=0)), centroid((-change).clip(min=0))
    moved = (x1 - x0, y1 - y0)
    axis = int(np.argmax(np.abs(expected)))
    assert np.sign(moved[axis]) == expected[axis]
    assert abs(moved[axis]) > 5 * abs(moved[1 - axis])


def test_angle_grows_clockwise_and_up_is_zero() -> None:
    poses = np.array([[0, 0, 0.3, angle] for angle in (0, np.pi / 2)], np.float32)
    _, cap = coverage("circle", poses, 64, 64)
    (x_up, y_up), (x_right, y_right) = centroid(cap[0]), centroid(cap[1])
    assert y_up < 25
    assert abs(x_up - 31.5) < 0.01
    assert x_right > 38
    assert abs(y_right - 31.5) < 0.01


@settings(max_examples=30, deadline=None)
@given(shape=st.sampled_from(SHAPES), shift=st.floats(-3, 3), angle=st.floats(-3, 3))
def test_motion_of_part_of_a_pixel_is_kept(shape: str, shift: float, angle: float) -> None:
    poses = np.array([[0, 0, 0.2, angle], [shift / 64, 0, 0.2, angle]], np.float32)
    still, moved = (centroid(mask)[0] for mask in coverage(shape, poses, 64, 64)[0])
    assert moved - still == pytest.approx(shift, abs=0.05)


def test_every_class_has_the_same_share_of_val_and_partners_share_it() -> None:
    rows = clip_list(CONFIG)
    assert len(rows) == len({row.path for row in rows}) == 8 * CONFIG.clips_per_class
    val = {
        name: {r.path.split("_")[-1] for r in rows if r.label == name and r.split == "val"}
        for name in CONFIG.classes
    }
    assert all(len(scenes) == CONFIG.val_per_class for scenes in val.values())
    for first, second in CLASS_PAIRS.values():
        assert val[first] == val[second]


def test_mp4_round_trip(tmp_path: Path) -> None:
    frames = render_clip(CONFIG, "turn_clockwise", 0)
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, frames, CONFIG.fps, CONFIG.crf)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == CONFIG.fps
    decoded = decode(tmp_path / "a.mp4")
    assert decoded.shape == frames.shape
    # Brightness: colour is kept at half resolution and may not match at the outline.
    grey = np.array([0.299, 0.587, 0.114])
    error = ((decoded.astype(float) - frames) @ grey) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 38


def test_still_matches_its_targets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, target = render_still(rng, 64)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert target["sin"] ** 2 + target["cos"] ** 2 == pytest.approx(1)
        assert target["coverage"].max() > 0.9
        if max(abs(target["x"]), abs(target["y"])) + target["radius"] * 1.2 < 0.5:
            x, y = centroid(target["coverage"])
            reach = 64 * target["radius"]
            assert abs(x - 31.5 - 64 * target["x"]) < 0.5 * reach
            assert abs(y - 31.5 - 64 * target["y"]) < 0.5 * reach


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": ()},
        {"pairs": ("horizontal", "horizontal")},
        {"pairs": ("diagonal",)},
        {"duration_s": (2.0, 1.0)},
        {"size_px": (63, 100)},
        {"clips": 3},
    ],
)
def test_config_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SynthConfig.model_validate(wrong)


def test_stage_writes_the_whole_folder(tmp_path: Path) -> None:
    config = SynthConfig(pairs=("scale",), clips_per_class=3, duration_s=(0.5, 0.6))
    counts = synth.run(config, tmp_path / "clips")
    with (tmp_path / "clips" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in rows] == clip_list(config)
    assert {p.name for p in tmp_path.iterdir()} == {"clips"}
    lengths = [len(decode(tmp_path / "clips" / row["path"])) for row in rows]
    assert counts == {"clips": 6, "frames": sum(lengths), "classes": 2}


def test_reading_the_config_needs_no_torch() -> None:
    code = "import sys, vidpipe.video.rendered; assert not {'torch', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bytes_do_not_depend_on_what_was_encoded_before(tmp_path: Path) -> None:
    """x264's lookahead reads memory it never wrote: with it, four of these five clips differed from
    one round to the next, and no fresh clone matched dvc.lock."""
    config = SynthConfig()
    clips = {i: render_clip(config, "grow", i) for i in (0, 1, 3, 4, 8)}
    seen: dict[int, set[bytes]] = {}
    for _ in range(3):
        for i, frames in clips.items():
            write_clip(tmp_path / "clip.mp4", frames, config.fps, config.crf)
            seen.setdefault(i, set()).add((tmp_path / "clip.mp4").read_bytes())
    assert all(len(versions) == 1 for versions in seen.values())


def test_every_processor_renders_the_same_pixels() -> None:
    """numpy with and without the vector units that it chooses its functions by."""
    code = (
        "import hashlib; from vidpipe.video.config import SynthConfig\n"
        "from vidpipe.video.rendered import render_clip\n"
        "clips = [render_clip(SynthConfig(), name, n) for name in ('grow', 'turn_clockwise')\n"
        "         for n in range(6)]\n"
        "print(hashlib.sha256(b''.join(c.tobytes() for c in clips)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("", "X86_V4", "X86_V4 X86_V3")
    }
    assert len(found) == 1, found
