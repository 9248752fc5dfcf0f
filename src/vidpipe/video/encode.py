"""Writing canonical clips: short-GOP H.264 in MP4, made to be read back at any frame."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

# x264's lookahead reads memory it never wrote at the edges of small pictures, so with it the same
# frames give other bytes from one call to the next. All that draws on it is off.
REPRODUCIBLE = {
    "threads": "1",
    "x264-params": "mbtree=0:rc-lookahead=0:b-adapt=0:scenecut=0:weightp=0",
}


def encode_h264(
    frames: Iterable[NDArray[np.uint8]], fps: Fraction, crf: int, gop: int
) -> tuple[bytes, int, tuple[int, int]]:
    """(H, W, 3) uint8 frames -> (MP4 bytes, number of frames, (width, height)).

    No B-frames, so that decode order is display order and random access is exact in every reader;
    one thread, so that the bytes depend on nothing but the frames. Raises ValueError without frames.
    """
    buffer = io.BytesIO()
    count, size = 0, (0, 0)
    with av.open(buffer, "w", format="mp4") as container:
        stream = None
        for array in frames:
            if stream is None:
                height, width = array.shape[:2]
                size = (width, height)
                stream = container.add_stream("libx264", rate=fps)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.thread_count = 1
                stream.options = {
                    "crf": str(crf),
                    "preset": "veryfast",
                    "g": str(gop),
                    "bf": "0",
                    **REPRODUCIBLE,
                }
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError("no frames to encode")
        container.mux(stream.encode(None))
    return buffer.getvalue(), count, size
