"""What is believed and what is not: reasons for real and made-up damage, and canonical frames."""

from __future__ import annotations

import io
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import jpegs, moving
from project import SHARED
from videos import CONFIG, row_of, write_video

from vidpipe.video.encode import Encoded
from vidpipe.video.extract import extract_one
from vidpipe.video.quarantine import REASONS
from vidpipe.video.readers import read_h264, read_pyav


def test_a_good_video_becomes_a_clip(tmp_path: Path) -> None:
    row = row_of(write_video(tmp_path / "good.mp4", moving(30)))
    assert row["status"] == "ok", row
    assert (row["frames"], row["fps"], row["width"], row["height"]) == (30, 25.0, 42, 32)
    assert row["source_bytes"] == (tmp_path / "good.mp4").stat().st_size


def test_another_rate_takes_the_nearest_frames(tmp_path: Path) -> None:
    frames = np.stack([np.full((48, 64, 3), 4 * i, np.uint8) for i in range(50)])
    clip = extract_one(
        write_video(tmp_path / "v.mp4", frames, crf="1"),
        CONFIG.model_copy(update={"fps": 5.0, "crf": 1}),
    )
    assert clip.row["fps"] == 5.0
    grey = read_pyav(clip.data, range(clip.row["frames"])).mean((1, 2, 3))
    np.testing.assert_allclose(grey, 4 * np.arange(0, 50, 5), atol=9)


def test_a_variable_rate_becomes_constant(tmp_path: Path) -> None:
    """40 ms apart but for a pause of 400 ms after frame 9: that frame is held."""
    times = [40 * i + (360 if i > 9 else 0) for i in range(20)]
    frames = np.stack([np.full((48, 64, 3), 12 * i, np.uint8) for i in range(20)])
    clip = extract_one(write_video(tmp_path / "v.mkv", frames, times, crf="1"), CONFIG)
    assert (clip.row["status"], clip.row["frames"]) == ("ok", 29), clip.row
    grey = read_pyav(clip.data, range(29)).mean((1, 2, 3))
    expected = [12 * i for i in range(10)] + [12 * 9] * 9 + [12 * i for i in range(10, 20)]
    np.testing.assert_allclose(grey, expected, atol=8)


def test_a_splice_in_the_time_stamps_is_not_a_still_picture(tmp_path: Path) -> None:
    times = [40 * i + (3_600_000 if i > 9 else 0) for i in range(20)]
    row = row_of(write_video(tmp_path / "v.mkv", moving(20), times))
    assert (row["status"], row["frames"], row["fps"]) == ("ok", 20, 25.0), row


def test_pixels_become_square(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for frame in moving(5, 48, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    row = row_of(path)
    assert (row["width"], row["height"]) == (64, 32)


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
    clip = extract_one(rotated, CONFIG)
    assert (clip.row["width"], clip.row["height"]) == (32, 42)
    picture = read_pyav(clip.data, [0])[0]
    assert picture[:, :5].mean() > 230  # a quarter turn counter-clockwise brings it to the left
    assert picture[:, -5:].mean() < 200


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("empty", "undecodable"),
        ("text", "undecodable"),
        ("cut", "truncated"),
        ("cut_with_index_in_front", "truncated"),
        ("absent", "missing_file"),
        ("short", "too_short"),
        ("long", "too_large"),
        ("big", "too_large"),
        ("heavy", "too_large"),
        ("audio", "no_video_stream"),
        ("zeroed", "corrupt_frames"),
    ],
)
def test_a_bad_file_is_quarantined_with_its_reason(
    tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "video.mp4"
    flags = {"movflags": "+faststart"} if damage == "cut_with_index_in_front" else {}
    write_video(path, moving(2 if damage == "short" else 60), g="12", **flags)
    data = path.read_bytes()
    limits: dict[str, Any] = {"min_frames": 4}
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("this is not a video\n" * 50)
    elif damage.startswith("cut"):
        path.write_bytes(data[: int(len(data) * 0.7)])
    elif damage == "absent":
        path.unlink()
    elif damage == "long":
        limits["max_frames"] = 30
    elif damage == "big":
        limits["max_pixels"] = 48 * 60
    elif damage == "heavy":
        limits["max_mb"] = 1e-3
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
    clip = extract_one(path, CONFIG.model_copy(update=limits))
    assert (clip.row["status"], clip.row["reason"]) == ("quarantined", reason), clip.row
    assert clip.row["detail"]
    assert not clip.data
    assert reason in REASONS


@pytest.mark.parametrize(("height", "width"), [(16, 8192), (8192, 16), (2, 5400)])
def test_a_thin_strip_that_would_become_enormous_is_too_large(
    tmp_path: Path, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes of it took 13.7 GB: its short side was made `short_side` pixels. Not decoded."""
    path = write_video(tmp_path / "v.mkv", np.zeros((4, height, width, 3), np.uint8))
    assert path.stat().st_size < 5000
    monkeypatch.delattr("vidpipe.video.decode._decoded")
    row = row_of(path, short_side=64)
    assert row["reason"] == "too_large", row
    assert f"{width}x{height} pixels would become" in row["detail"]


def test_square_pixels_count_for_the_canonical_size(tmp_path: Path) -> None:
    """8:1 pixels make 2560x32 of 320x32: at 64 pixels high 5120, at 256 over the 16,384 of H.264."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 320, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 8
        for frame in moving(4, 32, 320):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    row = row_of(path, short_side=64)
    assert (row["status"], row["width"], row["height"]) == ("ok", 5120, 64)
    assert row_of(path, short_side=256)["reason"] == "too_large"
    assert row_of(path, short_side=64, max_pixels=5120 * 64 - 1)["reason"] == "too_large"


def test_a_decoder_out_of_memory_is_the_files_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system kills it: not a file that cannot be decoded anywhere."""
    path = write_video(tmp_path / "v.mp4", moving(8))

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vidpipe.video.extract.encode_clip", full)
    row = row_of(path)
    assert (row["reason"], row["source_bytes"]) == ("crashed", path.stat().st_size)


@pytest.mark.parametrize("kind", ["playlist", "concat"])
def test_a_video_cannot_make_the_decoder_open_other_files(tmp_path: Path, kind: str) -> None:
    """FFmpeg follows playlists by itself: a label file's `clip.mp4` could be one."""
    secret = write_video(tmp_path / "secret.ts", moving(20))
    path = tmp_path / "clip.mp4"
    if kind == "playlist":
        lines = [
            "#EXTM3U",
            "#EXT-X-TARGETDURATION:1",
            "#EXTINF:0.8,",
            str(secret),
            "#EXT-X-ENDLIST",
        ]
    else:
        lines = ["ffconcat version 1.0", f"file {secret.name}"]
    path.write_text("\n".join(lines) + "\n")
    assert row_of(secret)["status"] == "ok"
    assert row_of(path)["reason"] == "undecodable"


# -- real files of other projects' test suites -------------------------------------------------

# One frame: a still picture is no clip.
TOO_SHORT = """
    png_renamed.mp4 frame_exceeds_screen.gif gradient.gif testsrc2_mpeg4.mp4 transparent.gif
    bbb_sunflower_QCIF_30fps_h263_noaudio_1f.3gp bbb_sunflower_QCIF_30fps_mp4v_noaudio_1f.mp4
    h264_white_frame_sar_16_9.mp4 hevc_white_frame.mp4 metadata.mp4 metadata_gnre.mp4 minimal.mp4
    tiny_av1.mp4 video_rotation_90.mp4
"""
NO_VIDEO = """
    afconvert-aac-0.5s.mp4 amr_nb_1f.3gp amr_wb_1f.3gp bipbop-cenc-audioinit.mp4
    bipbop_audioinit.mp4 bipbop_cbcs_audio_init.mp4 opus_audioinit.mp4
    opus_audioinit_two_desc.mp4 sine-3s-xhe-aac-44khz-mono.mp4
"""
# Not media, encrypted, or a header without any packet.
UNDECODABLE = """
    text.mp4 zero.mp4 sample_init.enca.mp4 sample_init.encv.mp4 chunk_out_of_range.mp4
    bipbop_480wp_1001kbps-cenc-video-key1-init.mp4 bipbop_cbcs_video_init.mp4 short-cenc.mp4
"""
# Cut by their authors, to have small files for tests of headers.
TRUNCATED = """
    sample_qt.mp4 bipbop_nonfragment_header.mp4 invalid_userdata.mp4 test_case_1185230.mp4
    zero_empty_stsc.mp4
"""
CORRUPT = {"corrupted.mp4", "no_timescale.mp4"}


def expected_reason(name: str) -> str:
    if ".trunc" in name or name in TRUNCATED.split():
        return "truncated"
    if ".bitflip" in name or ".zerohole" in name or name in CORRUPT:
        return "corrupt_frames"
    if name.endswith((".wav", ".mp3")) or name in NO_VIDEO.split():
        return "no_video_stream"
    if name in TOO_SHORT.split():
        return "too_short"
    return "undecodable" if name in UNDECODABLE.split() else ""


MEDIA = sorted(
    path
    for path in (SHARED / "media").rglob("*")
    if path.is_file() and path.suffix not in {".json", ".txt"}
)


# High dynamic range costs seconds a file. Quick sisters: the same without `_full_range`.
RANGES = {f"video_colr_nclx_{kind}_full_range.mp4" for kind in ("hdr10", "hlg")}


@pytest.mark.skipif(not MEDIA, reason="../shared is not here")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.long if p.name in RANGES else []) for p in MEDIA],
    ids=lambda path: path.name,
)
def test_real_files_are_taken_or_refused_for_the_right_reason(path: Path) -> None:
    row = row_of(path, short_side=16)
    assert row["reason"] == expected_reason(path.name), row


@pytest.mark.skipif(not MEDIA, reason="../shared is not here")
def test_the_right_number_of_frames_comes_out() -> None:
    """As many as other decoders count (see probe.json), where the rate is constant."""
    counts = {"video_large.webm": 116, "nasa_13013.mp4": 325, "av1_video.mkv": 125, "ok.mkv": 60}
    counts |= {"discard_first_keyframe.mp4": 25, "smth-smth-1.webm": 47, "ok_faststart.mp4": 60}
    counts |= {"animated.gif": 4, "testsrc2_vp9.webm": 30, "sample_fragmented.mp4": 10}
    found = {p.name: row_of(p, short_side=16)["frames"] for p in MEDIA if p.name in counts}
    assert found == counts


@pytest.mark.skipif(not MEDIA, reason="../shared is not here")
@pytest.mark.parametrize("tier", ["compact", "fast"])
def test_random_access_equals_sequential_over_containers_and_codecs(
    tmp_path: Path, tier: str
) -> None:
    """Every index of every good file, each read alone, against one sequential read."""
    read = 0
    for path in MEDIA:
        # High dynamic range costs seconds a file and is decided before the store.
        if any(word in path.name for word in ("hdr", "hlg", "colr", "bt2020")):
            continue
        if expected_reason(path.name) or path.stat().st_size > 700_000:
            continue
        config = CONFIG.model_copy(update={"short_side": 16, "tier": tier, "gop": 5})
        clip = extract_one(path, config)
        frames = clip.row["frames"]
        # Each alone; of long clips in small handfuls, far apart and out of order.
        few = 1 if frames <= 30 else 8
        handfuls = [
            list(range(frames))[i :: -(-frames // few)][::-1] for i in range(-(-frames // few))
        ]
        assert sorted(itertools.chain(*handfuls)) == list(range(frames))
        if tier == "compact":
            with av.open(io.BytesIO(clip.data)) as container:
                whole = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
            for reader in (read_pyav, partial(read_h264, reader="decord")):
                for indices in handfuls:
                    np.testing.assert_array_equal(reader(clip.data, indices), whole[indices])
        else:
            stored = Encoded(clip.data, frames, clip.row["width"], clip.row["height"])
            whole = jpegs(stored, range(frames))
            for indices in handfuls:
                np.testing.assert_array_equal(jpegs(stored, indices), whole[indices])
        assert len(whole) == frames
        read += 1
    assert read > 35
