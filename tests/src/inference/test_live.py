"""Live sources: addresses, the ring of frames, real streams that stutter, stop, lie and come back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import moving
from hypothesis import given
from hypothesis import strategies as st
from live_camera import Camera, Step
from small_models import UNIFORM
from videos import write_video

from vidpipe.data.config import SamplingConfig
from vidpipe.errors import VidpipeError
from vidpipe.inference.live.address import Address
from vidpipe.inference.live.latency import Latency
from vidpipe.inference.live.pace import Pace
from vidpipe.inference.live.reader import LAG_S, Answer, Reader
from vidpipe.inference.live.ring import Ring
from vidpipe.inference.live.watch import Gap, Lost, Waiting, Watch, Window
from vidpipe.inference.segments import Request, segments
from vidpipe.video.canonical import Canonical
from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError


def request(timeout_s: float = 3, **options: object) -> Request:
    extract = ExtractConfig(short_side=36, min_frames=1, timeout_s=timeout_s)
    given = {"window_s": 0.4, "step_s": 0.2, **options}
    return Request(extract, (UNIFORM,), **given)  # type: ignore[arg-type]


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rtsp://u:p@cam/1", "rtsp"),
        ("tcp://127.0.0.1:9", "tcp"),
        ("-", "-"),
        ("HTTP://h/a.ts", "http"),
    ],
)
def test_addresses(text: str, kind: str) -> None:
    assert Address.of(text).kind == kind
    assert ":p@" not in Address.of(text).shown


@pytest.mark.parametrize(
    "text",
    [
        "gopher://a/b",
        "concat:a|b",
        "http://",
        "tcp://host:port",
        "webcam:x",
        "webcam:999",
        "no/such/file.mp4",
        "file:///no/such",
        "pipe:0",
        "",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(VidpipeError, match="live"):
        Address.of(text)


def test_a_stream_may_not_lead_elsewhere(tmp_path: Path) -> None:
    """A playlist names other files and hosts; FFmpeg would open them."""
    secret = write_video(tmp_path / "secret.mp4", moving(20))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    )
    concat = tmp_path / "list.txt"
    concat.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    for file in (playlist, concat):
        watch = Watch(Address.of(str(file)), request())
        assert [e for e in watch if isinstance(e, Window)] == []
        assert watch.lost_for_good is not None


# -- the ring -------------------------------------------------------------------------------------


def ring_of(times: list[float], fps: int = 10, length: int = 4, source: int = 10) -> Ring:
    ring = Ring(Fraction(fps), length, Fraction(source))
    for number, at in enumerate(times):
        picture = np.full((2, 2, 3), number, np.uint8)
        ring.add(Fraction(at).limit_denominator(1000), 100 + at, lambda picture=picture: picture)
    return ring


def shown(ring: Ring) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in ring.frames]


def test_slots_are_filled_as_a_player_shows_them() -> None:
    assert shown(ring_of([0, 0.1, 0.2, 0.3, 0.4])) == [1, 2, 3, 4]
    assert shown(ring_of([0, 0.1, 0.3])) == [0, 1, 1, 2], "a missing frame: the one before it"
    assert shown(ring_of([0, 0.05, 0.1, 0.15, 0.2], source=20)) == [0, 2, 4]
    assert shown(ring_of([0, 0.2, 0.1, 0.3])) == [0, 0, 1, 3], "nobody sees one that comes too late"


def test_a_hole_starts_the_window_anew_and_is_reported_once() -> None:
    ring = ring_of([0, 0.1, 0.2, 0.3, 2.3, 2.4])
    assert shown(ring) == [4, 5]
    assert ring.ended_pauses(now=102.4) == ()
    assert [round(s, 3) for s in ring.ended_pauses(now=103.0)] == [2.0]
    assert ring.ended_pauses(now=103.0) == ()


def test_a_clock_that_is_set_costs_one_window_of_frames() -> None:
    ring = ring_of([0, 0.1, 0.2, 0.3])
    before = ring.count
    for at in (-50.0, -49.9, 9e5):
        ring.add(Fraction(at), 101.0, lambda: np.zeros((2, 2, 3), np.uint8))
    assert len(ring.frames) == 1
    assert ring.count == before + 3


@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=40))
def test_no_time_stamps_make_the_ring_grow(times: list[float]) -> None:
    ring = ring_of(times)
    assert len(ring.frames) <= ring.length
    assert len(ring.pauses) <= len(times)


def test_a_window_too_large_for_memory_is_refused() -> None:
    ring = Ring(Fraction(25), 1000, Fraction(25))
    with pytest.raises(QuarantineError, match="a window has 1000 frames of 640x480"):
        ring.add(Fraction(0), 0.0, lambda: np.zeros((480, 640, 3), np.uint8))


def test_a_live_source_is_never_waited_for_and_a_file_is() -> None:
    live, file = Pace(0.0), Pace(0.0)
    assert {live.wait(2 + at / 10, max(0, at - 20) / 10) for at in range(100)} == {
        0.0
    }  # 2 s at once
    waits = [file.wait(at / 10, 0.0) for at in range(100)]
    assert waits[:30] == [0.0] * 30
    assert sum(waits[40:]) > 1


@given(st.lists(st.floats(0.1, 1e5), min_size=1, max_size=300))
def test_percentiles_are_those_of_the_numbers_to_a_hundredth(times: list[float]) -> None:
    latency = Latency()
    for each in times:
        latency.add(each)
    for share in (0.5, 0.95, 0.99):
        expected = float(np.quantile(times, share, method="inverted_cdf"))
        assert latency.percentile(share) == pytest.approx(expected, rel=0.02)
    assert Latency().summary() == {"p50_ms": None, "p95_ms": None, "p99_ms": None}


# -- streams --------------------------------------------------------------------------------------


Enough = Callable[[list[type]], bool]


def watched(
    camera: Camera, seconds: float, timeout_s: float = 3, enough: Enough | None = None
) -> list[object]:
    """What happens in so many seconds, or until it is enough."""
    watch = Watch(Address.of(camera.url), request(timeout_s), first_wait_s=0.2)
    timer = threading.Timer(seconds, watch.stop.set)
    timer.start()
    found: list[object] = []
    for event in watch:
        if isinstance(event, Window | Gap | Lost):
            found.append(event)
            if enough is not None and enough([type(e) for e in found]):
                watch.stop.set()
    timer.cancel()
    return found


def test_a_stream_that_stutters_loses_its_way_stops_and_comes_back() -> None:
    steps = [
        *(
            Step("play", 1.5),
            Step("late", 0.8),
            Step("play", 1),
            Step("garbage", 60),
            Step("play", 1),
        ),
        *(
            Step("hole", 1.0),
            Step("play", 1),
            Step("down", 1.0),
            Step("garbage", 100),
            Step("close"),
        ),
    ]
    with Camera(steps) as camera:
        found = watched(camera, 13, enough=lambda e: e.count(Gap) == 3 and e.count(Window) > 20)
    gaps = [e for e in found if isinstance(e, Gap)]
    losses = [e for e in found if isinstance(e, Lost)]
    windows = [e for e in found if isinstance(e, Window)]
    assert [gap.attempts > 0 for gap in gaps] == [False, False, True]
    assert [gap.seconds for gap in gaps[:2]] == pytest.approx([0.8, 1.0], abs=0.35)
    assert [loss.reason for loss in losses] == ["truncated"], (
        "one line, however many tries it takes"
    )
    assert len(windows) > 20
    assert windows[-1].segment.frames.shape[0] == UNIFORM.num_frames
    assert camera.connections >= 3


def test_a_stream_over_http_that_ends_is_asked_for_again() -> None:
    with Camera([Step("play", 1), Step("close")], http=True) as camera:
        found = watched(camera, 5, enough=lambda e: e[-2:] == [Gap, Window])
    kinds = [type(e) for e in found if not isinstance(e, Window)]
    assert kinds == [Lost, Gap]
    assert camera.connections == 2


def test_a_stream_of_garbage_is_a_line_and_tries_that_get_rarer() -> None:
    with Camera([Step("garbage", 300), Step("close")] * 50) as camera:
        found = watched(camera, 5, timeout_s=1)
    assert [(type(e), e.reason) for e in found] == [(Lost, "undecodable")]  # type: ignore[attr-defined]
    assert 2 <= camera.connections <= 6


def test_nobody_answers() -> None:
    watch = Watch(Address.of("tcp://127.0.0.1:9"), request(), give_up_s=0.5, first_wait_s=0.3)
    assert [e.reason for e in watch if isinstance(e, Lost)] == ["missing_file"]
    assert watch.lost_for_good is not None


def answers(reader: Reader, seconds: float) -> Iterator[Answer]:
    until = time.monotonic() + seconds
    while time.monotonic() < until and (found := reader.answer()) is not None:
        yield found


def test_decoding_too_slow_for_the_stream_drops_frames_and_stays_near_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Canonical.__call__

    def slow(self: Canonical, frame: object) -> np.ndarray:
        time.sleep(0.1)  # of 25 frames a second
        return whole(self, frame)

    monkeypatch.setattr(Canonical, "__call__", slow)
    with Camera([], gop=5) as camera:
        reader = Reader(Address.of(camera.url), request(), None)
        found = list(answers(reader, 6))
        late = [a.arrived for a in found if a.segment]
        now = time.monotonic()
    counts = [a.counts for a in found]
    assert sum(c.dropped for c in counts) > 15
    assert sum(c.shown for c in counts) > 10
    assert now - late[-1] < LAG_S + 2


def test_windows_for_which_nobody_asked_are_counted_and_the_newest_is_given() -> None:
    with Camera([]) as camera:
        reader = Reader(Address.of(camera.url), request(), None)
        next(a for a in answers(reader, 5) if a.segment)
        time.sleep(1.1)
        late = next(a for a in answers(reader, 5) if a.segment)
    assert 3 <= late.skipped <= 7
    assert time.monotonic() - late.arrived < 0.5


def test_a_file_is_played_to_its_end_with_the_frames_of_predict(tmp_path: Path) -> None:
    """One window of the whole file holds what `segments` takes of it."""
    file = write_video(tmp_path / "a.mp4", moving(24))
    asked = request(window_s=24 / 25, step_s=None)
    (window,) = [e for e in Watch(Address.of(str(file)), asked) if isinstance(e, Window)]
    (expected,) = segments(str(file), asked)
    np.testing.assert_array_equal(window.segment.frames, expected.frames)
    assert window.segment.positions[0].tolist() == expected.positions[0].tolist()


def test_a_window_of_dense_sampling_is_as_long_as_its_clip(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mp4", moving(30))
    dense = SamplingConfig(strategy="dense", num_frames=4, stride=3)
    asked = Request(request().extract, (dense,), step_s=0.4)
    windows = [e for e in Watch(Address.of(str(file)), asked) if isinstance(e, Window)]
    assert {round(w.segment.end_s, 3) for w in windows} == {10 / 25}


def test_standard_input_is_read_by_another_process(tmp_path: Path) -> None:
    events = piped_in(write_video(tmp_path / "a.ts", moving(50)).read_bytes())
    assert [type(e) for e in events if not isinstance(e, Window)] == []
    assert len(events) > 2


@pytest.mark.parametrize("data", [b"", b"no video at all\n" * 5000])
def test_standard_input_without_a_picture_ends(data: bytes) -> None:
    assert [type(e) for e in piped_in(data)] == ([Lost] if data else [])


def piped_in(data: bytes) -> list[object]:
    read_end, write_end = os.pipe()
    kept = os.dup(0)
    os.dup2(read_end, 0)

    def pour() -> None:
        for start in range(0, len(data), 3000):
            os.write(write_end, data[start : start + 3000])
            time.sleep(0.01)
        os.close(write_end)

    writer = threading.Thread(target=pour, daemon=True)
    try:
        writer.start()
        watch = Watch(Address.of("-"), request(), first_wait_s=0.2)
        return [e for e in watch if not isinstance(e, Waiting)]
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(read_end)
