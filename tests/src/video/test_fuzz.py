"""Whatever is done to a video's bytes: a clip or a reason, never a dead or hanging decoder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import pytest
from clips import moving
from hypothesis import example, given
from hypothesis import strategies as st
from videos import CONFIG, row_of, write_video

from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import REASONS

KINDS = {"mp4": "libx264", "mkv": "libx264", "ogv": "libvpx", "avi": "mpeg4", "ts": "mpeg2video"}
Decoder = Guards[str, Extracted]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")
    frames = moving(12)
    return {
        kind: write_video(root / f"v.{kind}", frames, codec=codec).read_bytes()
        for kind, codec in KINDS.items()
    }


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """A process of its own, as in `extract`: what kills it does not kill the tests."""
    with Guards(partial(extracted, CONFIG), timeout_s=60) as guards:
        yield guards


def extracted(config: ExtractConfig, path: str) -> Iterator[Extracted]:
    yield extract_one(Path(path), config)


damages = st.tuples(
    st.sampled_from(["flip", "zero", "remove", "repeat", "insert", "cut"]),
    st.floats(0, 1, exclude_max=True),  # where
    st.sampled_from([1, 8, 100, 1000]),  # bytes
    st.integers(0, 255),
)


def damaged(data: bytes, damage: tuple[str, float, int, int]) -> bytes:
    kind, where, size, value = damage
    at = int(where * len(data))
    before, part, after = data[:at], data[at : at + size], data[at + size :]
    return {
        "flip": before + bytes(byte ^ (value or 1) for byte in part) + after,
        "zero": before + bytes(len(part)) + after,
        "remove": before + after,
        "repeat": before + part + part + after,
        "insert": before + bytes([value]) * size + part + after,
        "cut": before,
    }[kind]


@given(kind=st.sampled_from(list(KINDS)), edits=st.lists(damages, min_size=1, max_size=3))
@example(kind="mp4", edits=[("insert", 0.0, 1000, 0)])
@example(kind="avi", edits=[("cut", 0.0, 1, 0)])
def test_damage_gives_a_clip_or_a_reason(
    whole: dict[str, bytes],
    decoder: Decoder,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    edits: list[tuple[str, float, int, int]],
) -> None:
    data = whole[kind]
    for edit in edits:
        data = damaged(data, edit)
    path = tmp_path_factory.mktemp("fuzz") / f"v.{kind}"
    path.write_bytes(data)
    first, end = (event.result for event in decoder.run([str(path)]))
    assert end is None
    assert isinstance(first, Extracted), "the decoder died or hung"
    row = first.row
    if row["status"] == "ok":
        with av.open(io.BytesIO(first.data)) as clip:
            frames = list(clip.decode(video=0))
        assert len(frames) == row["frames"] >= CONFIG.min_frames
        assert {(f.width, f.height) for f in frames} == {(row["width"], row["height"])}
    else:
        assert row["reason"] in set(REASONS) - {"crashed", "timeout", "missing_file", "duplicate"}
        assert row["detail"]
        assert "\n" not in row["detail"]
        assert not first.data
    # Here, after other files, by a process that has decoded others: the same.
    assert extract_one(path, CONFIG) == first
    path.unlink()


@given(kind=st.sampled_from(["mp4", "mkv", "ogv", "avi"]), part=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_never_believed(
    whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, kind: str, part: float
) -> None:
    """Of containers that say how long they are, at any byte."""
    path = tmp_path_factory.mktemp("cut") / f"v.{kind}"
    path.write_bytes(whole[kind][: int(part * len(whole[kind]))])
    row = row_of(path)
    assert row["reason"] in ("truncated", "undecodable"), row


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_are_taken(whole: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"v.{kind}"
    path.write_bytes(whole[kind])
    assert row_of(path)["frames"] == 12
