"""What a video file is, found without decoding: its packets say how many frames, how fast, how whole."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging

from vidpipe.video.canonical import canonical_size
from vidpipe.video.config import ExtractConfig
from vidpipe.video.container import cut_short
from vidpipe.video.quarantine import QuarantineError

# FFmpeg's demuxers also follow playlists, image patterns and network addresses; a video file needs
# none of these, and a hostile one could use them to read other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h263,h264,hevc,av1,obu,ivf,"
    "flv,asf,asf_o,ogg,nut,mxf,dv,gif,apng,mjpeg,webp,rm,swf,yuv4mpegpipe,wav,mp3,aac,ac3,flac,w64,aiff,"
    "caf,amr,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,gif_pipe,tiff_pipe"
)
MAX_FPS = 240
"""More is a broken time stamp, not a camera's rate."""
MAX_SIDE = 16_384
"""Of a canonical frame, in pixels: libx264 encodes no longer ones."""
ENCRYPTED = {"encryption_info", "encryption_init_info"}
Message = tuple[int, str, str]
"""Of FFmpeg's log: its level (lower is worse), the part that says it, the text."""


@dataclass(frozen=True)
class Probe:
    stream: int
    """Index of the video stream."""
    fps: Fraction
    """The constant rate that suits its time stamps."""
    packets: int
    """That are meant to be shown: those an edit list hides are not counted."""
    timed: bool
    """False where time stamps are missing or all the same: then order is all there is."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The container of an untrusted local file. Raises QuarantineError."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path), metadata_errors="ignore", options=options)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise QuarantineError("undecodable", first_line(error)) from None
    with container:
        yield container


def probe(path: Path, config: ExtractConfig) -> Probe:
    """Read all packets of `path` once, without decoding. Raises QuarantineError."""
    size = path.stat().st_size
    if size == 0:
        raise QuarantineError("undecodable", "the file is empty")
    # First, so that all later oddities of a file that was cut have this one name.
    missing = cut_short(path)
    if missing:
        raise QuarantineError("truncated", f"the file is cut short: {missing}")
    # From before the opening: damage near the start is seen, and said, there.
    with ffmpeg_log() as messages, opened(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if context is None:
            raise QuarantineError("undecodable", "its video codec is unknown")
        check_pixels(context.width, context.height, stream.sample_aspect_ratio, config)
        packets = _read(container, stream, config)
        complaints = errors_of(container.format.name, messages)
        _refuse_damage(packets, complaints, stream.frames, whole=missing == "")
        times = set(packets.times)
        timed = len(times) > 0.9 * packets.count
        fps = _rate(stream, sorted(times) if timed else [], packets.durations)
        return Probe(stream.index, fps, packets.count, timed)


def video_stream(container: Any) -> Any:
    """The first stream of moving pictures: a cover picture in a sound file is none."""
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition):
            stream.thread_count = 1  # parallel over videos, not within one
            return stream
    raise QuarantineError("no_video_stream", "the container has no video stream")


def check_size(path: Path, config: ExtractConfig) -> int:
    """Bytes of the file. Raises QuarantineError beyond `config.max_mb`."""
    size = path.stat().st_size
    if size > config.max_mb * 2**20:
        raise QuarantineError("too_large", f"{size / 2**20:.0f} MB, over {config.max_mb:g}")
    return size


def check_pixels(
    width: int, height: int, pixel_aspect: float | None, config: ExtractConfig
) -> None:
    """Of a source frame and of the canonical one, which is far larger where the source is a thin strip.

    Raises QuarantineError (`too_large`). Sides of 0 are not known yet.
    """
    if width * height > config.max_pixels:
        raise QuarantineError("too_large", f"{width}x{height} pixels in one frame")
    if width and height:
        wide, high = canonical_size(width, height, config.short_side, pixel_aspect)
        if max(wide, high) > MAX_SIDE or wide * high > config.max_pixels:
            detail = f"{width}x{height} pixels would become {wide}x{high}"
            raise QuarantineError("too_large", detail)


@contextmanager
def ffmpeg_log() -> Iterator[list[Message]]:
    """The errors that FFmpeg logs on this thread within the block, in order, as they come.

    Every one: PyAV by itself drops a message that equals the one before it, from whatever file that
    was, and a verdict would depend on the files decoded earlier.
    """
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as messages:
            yield messages
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def errors_of(part: str, messages: list[Message]) -> list[str]:
    """What FFmpeg's `part` (a demuxer or a decoder, by its name) says among `messages`."""
    return [
        text.strip() for level, name, text in messages if name == part and level <= av.logging.ERROR
    ]


@dataclass
class _Packets:
    times: list[Fraction]
    """Of presentation, in seconds, in the order of decoding."""
    durations: list[Fraction]
    count: int = 0
    hidden: int = 0
    """By an edit list."""
    damaged: int | None = None
    """Index of the first one that the demuxer marks."""


def _read(container: Any, stream: Any, config: ExtractConfig) -> _Packets:
    packets = _Packets([], [])
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if any(str(side.data_type) in ENCRYPTED for side in packet.iter_sidedata()):
                raise QuarantineError("undecodable", "the video is encrypted")
            if packet.is_corrupt and packets.damaged is None:
                packets.damaged = packets.count + packets.hidden
            if packet.is_discard:
                packets.hidden += 1
                continue
            packets.count += 1
            if packets.count > 2 * config.max_frames + 1000:
                raise QuarantineError("too_large", f"more than {config.max_frames} frames")
            if packet.pts is not None:
                packets.times.append(packet.pts * packet.time_base)
            if packet.duration:
                packets.durations.append(packet.duration * packet.time_base)
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = f"packet {packets.count}: {first_line(error)}"
        raise QuarantineError("corrupt_frames", detail) from None
    return packets


def _refuse_damage(packets: _Packets, complaints: list[str], declared: int, *, whole: bool) -> None:
    """Raise QuarantineError by what the demuxer marked, said or left out."""
    count = packets.count + packets.hidden
    for complaint in complaints:
        if any(word in complaint for word in ("prematurely", "partial file", "runcated")):
            raise QuarantineError("truncated", f"container: {complaint}")
    if packets.damaged is not None:
        # The last packet of a cut stream is a torn one.
        last = packets.damaged == count - 1 and not whole
        detail = f"packet {packets.damaged} of {count} is damaged"
        raise QuarantineError("truncated" if last else "corrupt_frames", detail)
    if complaints:
        raise QuarantineError("corrupt_frames", f"container: {complaints[0]}")
    if packets.count == 0:
        raise QuarantineError("undecodable", "its video stream has no packets")
    if count < 0.9 * declared:
        detail = f"{count} of {declared} declared frames"
        raise QuarantineError("corrupt_frames" if whole else "truncated", detail)


def _rate(stream: Any, times: list[Fraction], durations: list[Fraction]) -> Fraction:
    """Frames per second: the container's average where the time stamps bear it out."""
    declared = [Fraction(r) for r in (stream.average_rate, stream.guessed_rate) if r and r > 0]
    if len(times) > 1:
        # The median: a pause is no reason for a slower clock, which would drop frames elsewhere.
        typical = 1 / statistics.median(b - a for a, b in itertools.pairwise(times))
        near = [rate for rate in declared if abs(rate - typical) <= typical / 20]
        measured = near[0] if near else typical
        if measured <= MAX_FPS:
            return measured.limit_denominator(100_000)
    elif durations:
        declared.append(1 / statistics.median(durations))
    plausible = [rate for rate in declared if 1 <= rate <= MAX_FPS]
    return (plausible[0] if plausible else Fraction(25)).limit_denominator(100_000)


def first_line(error: BaseException) -> str:
    if isinstance(error, av.FFmpegError) and error.strerror:
        return str(error.strerror)  # without FFmpeg's number and the path
    return (str(error).splitlines() or [type(error).__name__])[0]
