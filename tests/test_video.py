"""Extraction: what is believed, what is quarantined, and random access equal to sequential decode."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.errors import VidpipeError
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import canonical_size
from vidpipe.video.encode import encode_h264
from vidpipe.video.extract import extract_one
from vidpipe.video.store import (
    FrameStore,
    read,
    read_decord,
    read_manifest,
    read_pyav,
    write_manifest,
)

CONFIG = ExtractConfig(short_side=32)


def moving(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3): a smooth pattern that moves, so every frame differs from every other."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    wave = 127 + 120 * np.sin((x + 2 * t) / 9) * np.cos(y / 11 + t / 17)
    return np.stack([wave, 255 - wave, np.roll(wave, 5, 1)], -1).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 40),
    gop=st.integers(1, 12),
    order=st.lists(st.integers(0, 10_000), min_size=1, max_size=12),
)
def test_random_access_equals_sequential_decode(frames: int, gop: int, order: list[int]) -> None:
    data, count, _ = encode_h264(iter(moving(frames)), Fraction(25), 20, gop)
    assert count == frames
    sequential = read_pyav(data, range(frames))
    indices = [i % frames for i in order]
    np.testing.assert_array_equal(read_decord(data, indices), sequential[indices])
    np.testing.assert_array_equal(read_pyav(data, indices), sequential[indices])


def test_encoded_bytes_depend_on_nothing_but_the_frames() -> None:
    first, second = (encode_h264(iter(moving(20)), Fraction(25), 20, 8)[0] for _ in range(2))
    assert first == second


def test_the_store_keeps_the_picture() -> None:
    frames = moving(16)[..., :1].repeat(3, -1)  # grey: 4:2:0 halves the resolution of colour
    data, *_ = encode_h264(iter(frames), Fraction(25), 18, 8)
    error = np.mean((read_pyav(data, range(16)).astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 38


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8000), st.integers(2, 8000), st.integers(16, 512))
def test_canonical_size(width: int, height: int, short: int) -> None:
    w, h = canonical_size(width, height, short)
    assert w % 2 == h % 2 == 0
    assert abs(min(w, h) - short) <= 1
    assert (w - h) * (width - height) >= 0


def test_a_good_video_becomes_a_clip(tmp_path: Path) -> None:
    source = write_video(tmp_path / "good.mp4", moving(30))
    row = extract_one(source, tmp_path / "part.mp4", CONFIG)
    assert row["status"] == "ok", row
    assert (row["frames"], row["fps"], row["width"], row["height"]) == (30, 25.0, 42, 32)


def test_rotation_is_applied(tmp_path: Path) -> None:
    upright, rotated = tmp_path / "upright.mp4", tmp_path / "rotated.mp4"
    frames = moving(10)
    frames[:, :10] = 255  # a white bar at the top
    write_video(upright, frames)
    with av.open(str(upright)) as source, av.open(str(rotated), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        try:
            stream.set_display_rotation(90)  # type: ignore[attr-defined]
        except AttributeError:
            pytest.skip("this PyAV cannot write a rotation; tests on shared media cover it")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    row = extract_one(rotated, tmp_path / "part.mp4", CONFIG)
    assert (row["width"], row["height"]) == (32, 42)
    picture = read_pyav((tmp_path / "part.mp4").read_bytes(), [0])[0]
    assert picture[:, :5].mean() > 230  # a quarter turn counter-clockwise brings it to the left
    assert picture[:, -5:].mean() < 200


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "undecodable"),
        ("text", "undecodable"),
        ("cut", "undecodable"),
        ("absent", "missing_file"),
        ("short", "too_short"),
        ("audio", "no_video_stream"),
        ("zeroed", "corrupt_frames"),
    ],
)
def test_a_bad_file_is_quarantined_with_its_reason(
    tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, moving(2 if damage == "short" else 60), g="12")
    data = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("this is not a video\n" * 50)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])  # the index at the end is gone
    elif damage == "absent":
        path.unlink()
    elif damage == "zeroed":
        middle = len(data) // 3
        path.write_bytes(data[:middle] + bytes(2000) + data[middle + 2000 :])
    elif damage == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=44100)
            samples = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    part = tmp_path / "part.mp4"
    row = extract_one(path, part, ExtractConfig(short_side=32, min_frames=4))
    assert (row["status"], row["reason"]) == ("quarantined", reason), row
    assert row["detail"]
    assert not part.exists()


def test_a_file_cut_short_with_its_index_in_front_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in moving(80):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.7)])
    row = extract_one(path, tmp_path / "part.mp4", CONFIG)
    assert row["status"] == "quarantined"
    assert row["reason"] in {"truncated", "corrupt_frames"}


@pytest.mark.skipif(not (SHARED / "media").is_dir(), reason="../shared is not here")
def test_no_real_world_file_raises(tmp_path: Path) -> None:
    """Real and damaged files of other projects' test suites: a row each, never an exception."""
    files = sorted(p for p in (SHARED / "media").rglob("*") if p.is_file())
    sample = [p for p in files if p.suffix not in {".json", ".txt"} and p.stat().st_size < 300_000]
    config = ExtractConfig(short_side=32, max_frames=400)
    rows = [extract_one(p, tmp_path / "part.mp4", config) for p in sample[::4]]
    assert {row["status"] for row in rows} == {"ok", "quarantined"}


def store_with(root: Path, clips: list[bytes], frames: int) -> None:
    rows, data = [], b""
    for i, clip in enumerate(clips):
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "a", "split": "train"},
                **{"status": "ok", "reason": "", "detail": "", "frames": frames, "fps": 25.0},
                **{"width": 64, "height": 48, "sha256": str(i), "shard": 0},
                **{"offset": len(data), "nbytes": len(clip)},
            }
        )
        data += clip
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"))


@pytest.mark.parametrize("cache_mb", [0, 1, 64])
def test_store_reads_the_right_frames_of_the_right_clip(tmp_path: Path, cache_mb: int) -> None:
    pictures = [moving(20), moving(20)[:, ::-1], moving(20)[:, :, ::-1]]
    clips = [encode_h264(iter(p), Fraction(25), 20, 8)[0] for p in pictures]
    store_with(tmp_path, clips, 20)
    store = FrameStore(tmp_path, cache_mb)
    for clip in (2, 0, 1, 0, 2):
        for indices in ([19], [3, 3, 0], list(range(20))):
            expected = read_pyav(clips[clip], indices)
            np.testing.assert_array_equal(store.read(clip, indices), expected)


def test_a_broken_store_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        VidpipeError, match=r"manifest.parquet: no such file; run `vidpipe extract`"
    ):
        read_manifest(tmp_path)
    clip = encode_h264(iter(moving(8)), Fraction(25), 20, 8)[0]
    store_with(tmp_path, [clip, clip], 8)
    shard = tmp_path / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[: len(clip) + 50])
    store = FrameStore(tmp_path)
    store.read(0, [0])
    with pytest.raises(VidpipeError, match="cut short"):
        store.read(1, [0])
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(VidpipeError, match="not a readable Parquet file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("width", [16, 24, 48, 72, 64, 90, 100])
def test_widths_that_decord_refuses_are_read_all_the_same(width: int) -> None:
    data, *_ = encode_h264(iter(moving(9, 32, width)), Fraction(25), 20, 8)
    np.testing.assert_array_equal(read(data, [8, 0, 3]), read_pyav(data, [8, 0, 3]))


def test_decord_and_pyav_see_the_same_pixels() -> None:
    data, *_ = encode_h264(iter(moving(12)), Fraction(25), 20, 8)
    assert av.open(io.BytesIO(data)).streams.video[0].frames == 12
    np.testing.assert_array_equal(read_decord(data, range(12)), read_pyav(data, range(12)))
