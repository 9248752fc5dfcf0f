"""What the demo page decodes: a copy that browsers play, on the clock of the segments."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import moving
from small_models import UNIFORM
from videos import write_video

from vidpipe.inference import film
from vidpipe.inference.film import Film, Part, Plan, browser_copy, scenes
from vidpipe.inference.key_frames import Keys
from vidpipe.inference.segments import Request, Segment, segments
from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError

EXTRACT = ExtractConfig(short_side=32, min_frames=1)
REQUEST = Request(EXTRACT, (UNIFORM,))


def copied(path: Path, folder: Path) -> Film:
    *_, copy = browser_copy(path, folder, EXTRACT)
    assert isinstance(copy, Film)
    return copy


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_the_copy_is_the_video_enlarged(tmp_path: Path, codec: str) -> None:
    frames = moving(30, 60, 80)
    rate = {"crf": "12"} if codec == "libx264" else {"qscale": "2", "b": "4000000"}
    copy = copied(write_video(tmp_path / "a.mkv", frames, codec=codec, **rate), tmp_path)
    assert copy[1:] == (pytest.approx(1.2), 480, 360)
    with av.open(str(copy.path)) as container:
        codec_context = container.streams.video[0].codec_context
        assert (codec_context.name, codec_context.pix_fmt) == ("h264", "yuv420p")
    data = copy.path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "it plays before it has all arrived"
    found = pictures(copy.path)
    assert len(found) == 30
    for t in (0, 13, 29):
        small = found[t].reshape(60, 6, 80, 6, 3).mean((1, 3))
        off = [np.abs(small - other).mean() for other in frames]
        assert int(np.argmin(off)) == t
        assert off[t] < 15


def test_a_fast_or_slow_video_has_its_own_seconds(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "fast.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for array in moving(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    copy = copied(tmp_path / "fast.mp4", tmp_path)
    assert copy.seconds == pytest.approx(1, abs=0.05)
    assert len(pictures(copy.path)) == 30
    slow = write_video(tmp_path / "slow.mp4", moving(4), [0, 500, 1000, 1500])
    (whole,) = segments(str(slow), REQUEST)
    assert copied(slow, tmp_path).seconds == pytest.approx(whole.end_s, abs=0.01)
    assert whole.end_s == pytest.approx(2, abs=0.1)


def test_a_video_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.avi", moving(60), codec="mpeg4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    (tmp_path / "copies").mkdir()
    with pytest.raises(QuarantineError):
        list(browser_copy(path, tmp_path / "copies", EXTRACT))
    assert not list((tmp_path / "copies").iterdir())


def test_the_whole_then_the_copy_then_windows(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", moving(100)))
    two = (Request(EXTRACT, (UNIFORM,), window_s=1.0), Request(EXTRACT, (UNIFORM,), window_s=2.0))
    whole, beat, copy, *parts = scenes(path, Plan(tmp_path, REQUEST, windows=two))
    assert isinstance(whole, Segment)
    assert isinstance(copy, Film)
    assert beat == pytest.approx(4)
    assert (whole.start_s, whole.end_s) == (0, pytest.approx(copy.seconds))
    for number, (window, step) in enumerate(((1.0, 0.25), (2.0, 0.5))):
        own = [p.segment for p in parts if isinstance(p, Part) and p.number == number]
        asked = Request(EXTRACT, (UNIFORM,), window_s=window, step_s=step)
        for one, other in zip(own, segments(path, asked), strict=True):
            assert one[:2] == other[:2]
            np.testing.assert_array_equal(one.frames, other.frames)
    given = Request(EXTRACT, (UNIFORM,), window_s=1.0, step_s=1.0)
    assert len(list(scenes(path, Plan(tmp_path, REQUEST, windows=(given,))))) == 3 + 4


def test_a_long_video_has_no_more_windows_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "MOST_WINDOWS", 20)
    path = str(write_video(tmp_path / "a.mp4", moving(100, 16, 16)))
    found = []
    for window in (0.8, 0.4, 0.16):  # 17, 37 or 97 at a quarter; 25 side by side
        asked = Request(EXTRACT, (UNIFORM,), window_s=window)
        plan = Plan(tmp_path, REQUEST, whole=False, windows=(asked,))
        found.append([p.segment for p in scenes(path, plan) if isinstance(p, Part)])
    assert [len(own) for own in found] == [17, 19, 25]
    assert {own[-1].end_s for own in found} == {4.0}


def test_key_seconds_and_no_windows(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", moving(100)))
    plan = Plan(tmp_path, REQUEST, whole=False, keys=Keys(step_s=1.5))
    found = list(scenes(path, plan))
    assert [type(each) for each in found] == [float, Film, Part, Part, Part]
    assert [p.segment.start_s for p in found if isinstance(p, Part)] == [0, 1.5, 3]
