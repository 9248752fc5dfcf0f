"""Writing canonical clips, made to be read back at any frame: short-GOP H.264, or a JPEG a frame."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg
from av.container import OutputContainer
from numpy.typing import NDArray

from vidpipe.video.config import ExtractConfig

# x264's lookahead reads memory it never wrote at the edges of small pictures, so with it the same
# frames give other bytes from one call to the next. All that draws on it is off.
REPRODUCIBLE = {
    "threads": "1",
    "x264-params": "mbtree=0:rc-lookahead=0:b-adapt=0:scenecut=0:weightp=0",
}
# For a reader, not a viewer: nearest to the source's pixels (no psychovisual tricks), one reference
# frame, and CAVLC: 10-16 % more bytes than CABAC for a third to a half less time to decode.
STORED = {
    **REPRODUCIBLE,
    "preset": "medium",
    "tune": "psnr",
    "x264-params": f"{REPRODUCIBLE['x264-params']}:ref=1:cabac=0",
}
CLOCK = Fraction(25)
"""Frames per second in every stored MP4. The true rate is in the manifest: a strange one (1/3, 239.7)
would make time stamps that readers round differently."""


class Encoded(NamedTuple):
    data: bytes
    frames: int
    width: int
    height: int


def encode_clip(frames: Iterable[NDArray[np.uint8]], config: ExtractConfig) -> Encoded:
    """(H, W, 3) uint8 frames as one clip of the store's tier. Raises ValueError without frames."""
    if config.tier == "fast":
        return encode_jpegs(frames, config.jpeg_quality)
    return encode_h264(frames, config.crf, config.gop)


def encode_h264(frames: Iterable[NDArray[np.uint8]], crf: int, gop: int) -> Encoded:
    """MP4. No B-frames, so that decode order is display order and random access is exact in every
    reader; one thread, so that the bytes depend on nothing but the frames."""
    buffer = io.BytesIO()
    count, width, height = 0, 0, 0
    options = {"crf": str(crf), "g": str(gop), "bf": "0", **STORED}
    with av.open(buffer, "w", format="mp4") as container:
        for written in mux_h264(container, frames, CLOCK, options, threads=1):
            count, width, height = written
    if not count:
        raise ValueError("no frames to encode")
    return Encoded(buffer.getvalue(), count, width, height)


def mux_h264(
    container: OutputContainer,
    frames: Iterable[NDArray[np.uint8]],
    fps: Fraction,
    options: dict[str, Any],
    threads: int = 0,
) -> Iterator[tuple[int, int, int]]:
    """Write (H, W, 3) uint8 frames into `container` as H.264; how many, width and height after each.

    The last ones are written when it is exhausted. `threads` 0: as many as x264 likes.
    """
    stream = None
    for count, array in enumerate(frames, 1):
        height, width = array.shape[:2]
        if stream is None:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = threads
            stream.options = options
        container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        yield count, width, height
    if stream is not None:
        container.mux(stream.encode(None))


def encode_jpegs(frames: Iterable[NDArray[np.uint8]], quality: int) -> Encoded:
    """frames + 1 little-endian uint32 offsets from the clip's start, then the JPEGs, end to end."""
    pictures, width, height = [], 0, 0
    for array in frames:
        height, width = array.shape[:2]
        array = np.ascontiguousarray(array)
        pictures.append(
            simplejpeg.encode_jpeg(array, quality, colorspace="RGB", colorsubsampling="420")
        )
    if not pictures:
        raise ValueError("no frames to encode")
    sizes = [4 * (len(pictures) + 1), *(len(picture) for picture in pictures)]
    offsets = np.cumsum(sizes)
    if offsets[-1] >= 2**32:
        raise ValueError("a clip of the fast tier is limited to 4 GiB; use tier compact")
    data = offsets.astype("<u4").tobytes() + b"".join(pictures)
    return Encoded(data, len(pictures), width, height)
