"""Segments of a raw video: the frames of evaluation, by windows, in bounded memory, from URLs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import moving
from small_models import (
    DENSE,
    UNIFORM,
)
from videos import good_and_bad_videos, write_video

from vidpipe.data.sampling import test_indices as middles
from vidpipe.inference import fetch, segments
from vidpipe.inference.segments import Request
from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError

EXTRACT = ExtractConfig(short_side=36, min_frames=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_and_bad_videos(tmp_path_factory.mktemp("videos"))


def test_a_segment_holds_the_frames_that_evaluation_takes(videos: Path) -> None:
    """Every frame of the file, by the same decoder; the indices of evaluation, for two samplings."""
    path = videos / "good1.mp4"
    request = Request(EXTRACT, (UNIFORM, DENSE), temporal_clips=2)
    (segment,) = segments.segments(str(path), request)
    _, frames = segments.decode(path, EXTRACT)
    every = np.stack(list(frames))
    assert (segment.start_s, segment.end_s) == (0.0, 37 / 25)
    for sampling, positions in zip((UNIFORM, DENSE), segment.positions, strict=True):
        expected = every[middles(37, sampling, 2)]
        np.testing.assert_array_equal(segment.frames[positions], expected)
    assert len(np.unique(segment.frames, axis=0)) == len(segment.frames) < 4 + 2 * 4, "each once"


@pytest.mark.parametrize(
    ("frames", "window", "step", "expected"),
    [
        (30, 0.4, 0.4, [(0, 10), (10, 20), (20, 30)]),
        (34, 0.4, 0.4, [(0, 10), (10, 20), (20, 30), (24, 34)]),
        (27, 0.4, 0.2, [(0, 10), (5, 15), (10, 20), (15, 25), (17, 27)]),
        (7, 0.4, 0.4, [(0, 7)]),
        (30, 40, 40, [(0, 30)]),
        (6, 0.01, 0.01, [(i, i + 1) for i in range(6)]),
    ],
)
def test_windows_cover_the_video(
    tmp_path: Path, frames: int, window: float, step: float, expected: list[tuple[int, int]]
) -> None:
    path = write_video(tmp_path / "v.mp4", moving(frames))
    every = np.stack(list(segments.decode(path, EXTRACT)[1]))
    request = Request(EXTRACT, (UNIFORM, DENSE), 1, window, step)
    found = list(segments.segments(str(path), request))
    assert [(round(s.start_s * 25), round(s.end_s * 25)) for s in found] == expected
    for segment, (start, end) in zip(found, expected, strict=True):
        for sampling, positions in zip((UNIFORM, DENSE), segment.positions, strict=True):
            wanted = start + middles(end - start, sampling, 1)
            np.testing.assert_array_equal(segment.frames[positions], every[wanted])


def _fake_decode(frames: int, alive: list[int]) -> Any:
    """Frames that know how many of them are alive; each is as large as one of Full HD, or says so."""

    class Counted(np.ndarray):
        nbytes = 1920 * 1080 * 3  # type: ignore[assignment]

        def __del__(self) -> None:
            alive[0] -= 1

    def decode(path: Path, config: ExtractConfig) -> tuple[Fraction, Iterator[Any]]:
        def generate() -> Iterator[Any]:
            for i in range(frames):
                alive[0] += 1
                alive[1] = max(alive)
                yield np.full((2, 2, 3), i % 251, np.uint8).view(Counted)

        return Fraction(25), generate()

    return decode


@pytest.mark.parametrize(("window", "most"), [(2.0, 60), (60.0, 60), (None, 60)])
def test_memory_does_not_grow_with_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: float | None, most: int
) -> None:
    """Of 20,000 frames a few are held at a time, and the right ones are found, if need be again."""
    path = tmp_path / "long.mp4"
    path.touch()
    alive = [0, 0]
    monkeypatch.setattr(segments, "decode", _fake_decode(20_000, alive))
    count = 0
    for segment in segments.segments(str(path), Request(EXTRACT, (UNIFORM,), 1, window)):
        start, end = round(segment.start_s * 25), round(segment.end_s * 25)
        wanted = start + middles(end - start, UNIFORM, 1)[0]
        assert segment.frames[segment.positions[0][0], 0, 0, 0].tolist() == (wanted % 251).tolist()
        count += 1
    assert count == (1 if window is None else -(-20_000 // round(window * 25)))
    assert alive[1] < most


@pytest.mark.parametrize("window", [0.4, None])
def test_a_segment_past_the_memory_of_one_is_refused(
    videos: Path, monkeypatch: pytest.MonkeyPatch, window: float | None
) -> None:
    request = Request(EXTRACT, (UNIFORM,), 1, window)
    frame = 48 * 36 * 3
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * frame)
    assert list(segments.segments(str(videos / "good0.mp4"), request))
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * frame - 1)
    with pytest.raises(QuarantineError, match=r"too_large: a segment has 4 frames of 48x36 pixels"):
        list(segments.segments(str(videos / "good0.mp4"), request))


def test_results_nobody_waits_for_do_not_come_with_the_next_video(videos: Path) -> None:
    with segments.decoders(Request(EXTRACT, (UNIFORM,), 1, 0.2)) as guards:
        first = guards.run([str(videos / "good0.mp4")])
        next(first)
        first.close()
        found = [event.result for event in guards.run([str(videos / "good1.mp4")])]
    starts = [round(25 * segment.start_s) for segment in found[:-1]]
    assert starts == [0, 5, 10, 15, 20, 25, 30, 32]
    assert found[-1] is None


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(videos: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(videos))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with closing(server.socket):
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_are_fetched_within_limits_and_leave_nothing(
    videos: Path, address: str, tmp_path: Path
) -> None:
    request = Request(EXTRACT, (UNIFORM,), scratch=tmp_path)
    (there,) = segments.segments(f"{address}/good0.mp4", request)
    (here,) = segments.segments(str(videos / "good0.mp4"), request)
    np.testing.assert_array_equal(there.frames, here.frames)
    small = Request(EXTRACT.model_copy(update={"max_mb": 0.001}), (UNIFORM,), scratch=tmp_path)
    for url, reason, request_ in [
        (f"{address}/absent.mp4", "missing_file", request),
        (f"{address}/text.mp4", "undecodable", request),
        (f"{address}/good0.mp4", "too_large", small),
        ("http://127.0.0.1:1/a.mp4", "missing_file", request),
        (f"file://{videos}/good0.mp4", "missing_file", request),
        (f"simplecache::{address}/good0.mp4", "missing_file", request),
    ]:
        with pytest.raises(QuarantineError) as caught:
            list(segments.segments(url, request_))
        assert caught.value.reason == reason, url
    assert not list(tmp_path.iterdir())
    assert "file" not in fetch.SCHEMES
