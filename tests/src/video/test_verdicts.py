"""A damaged file's verdict is its own: whatever was decoded before, wherever the damage shows."""

from __future__ import annotations

from pathlib import Path

import av.logging
import numpy as np
import pytest
from clips import moving
from hypothesis import given, settings
from hypothesis import strategies as st
from videos import row_of, write_video

from vidpipe.video.container import cut_short


@pytest.fixture(scope="module")
def ogg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several pages: VP8, and noise that takes space."""
    noise = np.random.default_rng(0).integers(0, 60, (30, 120, 160, 3))
    frames = (moving(30, 120, 160) // 2 + noise).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("ogg") / "whole.ogv"
    return write_video(path, frames, codec="libvpx", b="1M")


@pytest.fixture(scope="module")
def flipped(ogg: Path) -> list[Path]:
    """Four Ogg files, a bit flipped in each: FFmpeg says the same of all, `CRC mismatch!`."""
    data = ogg.read_bytes()
    paths = []
    for i in range(4):
        path = ogg.with_name(f"flip{i}.ogv")
        at = len(data) * (i + 2) // 7
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        paths.append(path)
    return paths


@settings(max_examples=15)
@given(order=st.permutations(range(5)))
def test_a_verdict_does_not_depend_on_the_files_before_it(
    ogg: Path, flipped: list[Path], order: list[int]
) -> None:
    files = [ogg, *flipped]
    found = {i: row_of(files[i]) for i in order}
    assert found.pop(0)["status"] == "ok"
    assert {i: (row["reason"], row["detail"]) for i, row in found.items()} == dict.fromkeys(
        found, ("corrupt_frames", "container: CRC mismatch!")
    )


def test_what_is_said_while_a_file_is_opened_counts(tmp_path: Path) -> None:
    """A Matroska file with a hole near its start: FFmpeg says so once, on opening, and plays on."""
    path = write_video(tmp_path / "v.mkv", moving(30))
    data = path.read_bytes()
    assert row_of(path)["frames"] == 30
    path.write_bytes(data[:68] + bytes(16) + data[84:])
    row = row_of(path)
    assert row["reason"] == "corrupt_frames", row
    assert "invalid as first byte of an EBML number" in row["detail"]


def test_the_log_is_left_as_it_was(ogg: Path) -> None:
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    row_of(ogg)
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before


def page_starts(data: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(b"OggS\0", i)]


@pytest.mark.parametrize("where", [0.02, 0.3, 0.6, 0.95, "between pages", "last byte"])
def test_an_ogg_that_was_cut_is_truncated(ogg: Path, tmp_path: Path, where: float | str) -> None:
    data = ogg.read_bytes()
    starts = page_starts(data)
    assert len(starts) > 5
    at = {"between pages": starts[-1], "last byte": len(data) - 1}.get(str(where))
    path = tmp_path / "cut.ogv"
    path.write_bytes(data[: int(len(data) * float(where)) if at is None else at])
    assert row_of(path)["reason"] == "truncated"
    assert cut_short(ogg) == ""


@pytest.mark.parametrize("change", ["no pictures", "out of step"])
def test_an_ogg_whose_pages_say_nothing_is_not_judged_by_them(
    ogg: Path, tmp_path: Path, change: str
) -> None:
    data = ogg.read_bytes()
    changed = {
        "no pictures": data.replace(b"OVP80", b"OggX0"),
        "out of step": data[:90] + data[89:],
    }
    path = tmp_path / "v.ogv"
    path.write_bytes(changed[change][: page_starts(data)[-1]])  # cut, too
    assert cut_short(path) is None
