"""The store's clips: random access equals sequential decode, in every tier and reader."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from clips import jpegs, moving
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.errors import VidpipeError
from vidpipe.video import readers
from vidpipe.video.canonical import canonical_size
from vidpipe.video.config import ExtractConfig
from vidpipe.video.encode import Encoded, encode_clip, encode_h264, encode_jpegs
from vidpipe.video.readers import read_decord, read_h264, read_pyav
from vidpipe.video.store import FrameStore, read_manifest, write_manifest

CONFIG = ExtractConfig(short_side=32)


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
    clip = encode_h264(iter(moving(frames)), 20, gop)
    assert clip.frames == frames
    with av.open(io.BytesIO(clip.data)) as container:
        sequential = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    indices = [i % frames for i in order]
    np.testing.assert_array_equal(read_decord(clip.data, indices), sequential[indices])
    np.testing.assert_array_equal(read_pyav(clip.data, indices), sequential[indices])
    fast = encode_jpegs(iter(moving(frames)), 90)
    np.testing.assert_array_equal(jpegs(fast, indices), jpegs(fast, range(frames))[indices])


@pytest.mark.parametrize("tier", ["compact", "fast"])
def test_encoded_bytes_depend_on_nothing_but_the_frames(tier: str) -> None:
    config = ExtractConfig(short_side=48, tier=tier)  # type: ignore[arg-type]
    first, second = (encode_clip(iter(moving(20)), config) for _ in range(2))
    assert first == second


def test_the_store_keeps_the_picture() -> None:
    frames = moving(16)[..., :1].repeat(3, -1)  # grey: 4:2:0 halves the resolution of colour
    compact = read_pyav(encode_h264(iter(frames), 18, 8).data, range(16))
    fast = jpegs(encode_jpegs(iter(frames), 90), range(16))
    for read in (compact, fast):
        error = np.mean((read.astype(float) - frames) ** 2)
        assert 10 * np.log10(255**2 / error) > 38


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8000), st.integers(2, 8000), st.integers(16, 512))
def test_canonical_size(width: int, height: int, short: int) -> None:
    w, h = canonical_size(width, height, short)
    assert w % 2 == h % 2 == 0
    assert abs(min(w, h) - short) <= 1
    assert (w - h) * (width - height) >= 0


def three_clips(tier: str) -> list[Encoded]:
    pictures = [moving(20), moving(20)[:, ::-1], moving(20)[:, :, ::-1]]
    config = ExtractConfig(short_side=48, tier=tier)  # type: ignore[arg-type]
    return [encode_clip(iter(frames), config) for frames in pictures]


def store_with(root: Path, clips: list[Encoded], tier: str = "compact") -> None:
    rows, data = [], b""
    for i, clip in enumerate(clips):
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "a", "split": "train"},
                **{"status": "ok", "reason": "", "detail": "", "frames": clip.frames, "fps": 25.0},
                **{"width": clip.width, "height": clip.height, "sha256": str(i), "shard": 0},
                **{"offset": len(data), "nbytes": len(clip.data)},
            }
        )
        data += clip.data
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"), tier)


@pytest.mark.parametrize("cache_mb", [0, 1, 64])
def test_store_reads_the_right_frames_of_the_right_clip(tmp_path: Path, cache_mb: int) -> None:
    clips = three_clips("compact")
    store_with(tmp_path, clips)
    store = FrameStore(tmp_path, cache_mb)
    for clip in (2, 0, 1, 0, 2):
        for indices in ([19], [3, 3, 0], list(range(20))):
            expected = read_pyav(clips[clip].data, indices)
            np.testing.assert_array_equal(store.read(clip, indices), expected)


def test_a_broken_store_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(
        VidpipeError, match=r"manifest.parquet: no such file; run `vidpipe extract`"
    ):
        read_manifest(tmp_path)
    clip = encode_h264(iter(moving(8)), 20, 8)
    store_with(tmp_path, [clip, clip])
    shard = tmp_path / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[: len(clip.data) + 50])
    store = FrameStore(tmp_path)
    store.read(0, [0])
    with pytest.raises(VidpipeError, match="cut short"):
        store.read(1, [0])
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(VidpipeError, match="not a readable Parquet file"):
        read_manifest(tmp_path)


def test_of_a_manifest_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    """The bytes of another one are rubbish: with them in the way, nothing could be read."""
    store_with(tmp_path, three_clips("compact"))
    path = tmp_path / "manifest.parquet"
    group = pq.read_metadata(path).row_group(0)
    (detail,) = (c for c in map(group.column, range(16)) if c.path_in_schema == "detail")
    data = bytearray(path.read_bytes())
    start = detail.dictionary_page_offset or detail.data_page_offset
    data[start : start + detail.total_compressed_size] = b"\xff" * detail.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(VidpipeError, match="not a readable Parquet file"):
        read_manifest(tmp_path)
    rows = read_manifest(tmp_path, ["label", "id"]).rows
    assert list(rows.columns) == ["label", "id"]
    assert rows.id.tolist() == ["c0", "c1", "c2"]
    assert len(FrameStore(tmp_path)) == 3
    with pytest.raises(VidpipeError, match="no column 'nosuch'"):
        read_manifest(tmp_path, ["nosuch"])


@pytest.mark.parametrize("width", [16, 24, 48, 72, 64, 90, 100])
def test_widths_that_decord_refuses_are_read_all_the_same(width: int) -> None:
    data = encode_h264(iter(moving(9, 32, width)), 20, 8).data
    np.testing.assert_array_equal(read_h264(data, [8, 0, 3], "decord"), read_pyav(data, [8, 0, 3]))


def test_decord_and_pyav_see_the_same_pixels() -> None:
    data = encode_h264(iter(moving(12)), 20, 8).data
    assert av.open(io.BytesIO(data)).streams.video[0].frames == 12
    np.testing.assert_array_equal(read_decord(data, range(12)), read_pyav(data, range(12)))


@pytest.mark.parametrize("tier", ["compact", "fast"])
def test_a_remote_store_reads_the_same(tmp_path: Path, tier: str) -> None:
    store_with(tmp_path, three_clips(tier), tier)
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path), f"/{tier}", recursive=True)
    here, there = FrameStore(tmp_path), FrameStore(f"memory://{tier}")
    for clip in range(3):
        for indices in ([0], [19, 3, 3], list(range(20))):
            np.testing.assert_array_equal(there.read(clip, indices), here.read(clip, indices))
    with pytest.raises(IndexError, match="frames 0 to 19"):
        here.read(0, [20])
    remote.rm(f"/{tier}/shard-00000.bin")
    with pytest.raises(VidpipeError, match=r"shard-00000.bin"):
        FrameStore(f"memory://{tier}").read(0, [0])


def test_a_hostile_table_of_frames_cannot_read_another_clip(tmp_path: Path) -> None:
    clips = three_clips("fast")
    table = np.frombuffer(clips[0].data, "<u4", 21).copy()
    table[1:] += np.uint32(len(clips[0].data))
    hostile = clips[0]._replace(data=table.tobytes() + clips[0].data[84:])
    store_with(tmp_path, [hostile, *clips[1:]], "fast")
    with pytest.raises(VidpipeError, match="clip c0 cannot be read: its table of frames"):
        FrameStore(tmp_path).read(0, [5])


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_a_reader_that_is_not_there_is_named_and_pyav_reads(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip = encode_h264(iter(moving(20)), 20, 8)
    expected = read_pyav(clip.data, [3, 17])
    monkeypatch.setitem(sys.modules, name, None)
    readers._is_installed.cache_clear()
    try:
        np.testing.assert_array_equal(read_h264(clip.data, [3, 17], name), expected)
    finally:
        readers._is_installed.cache_clear()
    assert f"{name} is not installed here: the store is read with PyAV" in caplog.text


def test_torchcodec_sees_the_same_pixels() -> None:
    pytest.importorskip("torchcodec", exc_type=ImportError)
    data = encode_h264(iter(moving(40)), 20, 8).data
    np.testing.assert_array_equal(
        readers.read_torchcodec(data, [0, 39, 7, 7]), read_pyav(data, [0, 39, 7, 7])
    )
