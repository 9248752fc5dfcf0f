"""Frames of one stored clip by index. Every reader gives the same frames for the same index."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidpipe.video.encode import CLOCK

Frames = NDArray[np.uint8]
Ranges = Callable[[Sequence[tuple[int, int]]], list[bytes]]
"""Reads (start, end) byte ranges of a clip."""

logger = logging.getLogger(__name__)


def read_decord(data: bytes, indices: Sequence[int]) -> Frames:
    import decord

    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    frames: Frames = reader.get_batch(list(indices)).asnumpy()
    return frames


def read_torchcodec(data: bytes, indices: Sequence[int]) -> Frames:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(data, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    frames: Frames = decoder.get_frames_at(list(indices)).data.numpy()
    return frames


def read_pyav(data: bytes, indices: Sequence[int]) -> Frames:
    """From the key frame before each frame wanted; a clip has one every `extract.gop` frames."""
    import av

    wanted = sorted(set(indices))
    found: dict[int, Frames] = {}
    with av.open(io.BytesIO(data), "r") as container:
        stream: Any = container.streams.video[0]
        stream.thread_count = 1
        step = round(1 / (CLOCK * stream.time_base))
        position = -1  # index of the frame decoded last
        frames: Any = container.decode(stream)
        frame: Any
        keys = _key_frames(stream, step)
        for index in wanted:
            key = max((k for k in keys if k <= index), default=0)
            if key > position + 1:
                container.seek(key * step, stream=stream)
                frames = container.decode(stream)
            while position < index:
                frame = next(frames, None)
                if frame is None:
                    raise ValueError(f"it ends after frame {position}; {index} was asked for")
                position = frame.pts // step
            found[index] = _converter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.stack([found[index] for index in indices])


_own = threading.local()


def _converter() -> Any:
    """Of this thread. `frame.to_ndarray(format=...)` would set FFmpeg's scaler up for every frame,
    which takes as long as to decode it, and on threads, which a forked loader process has not."""
    if not hasattr(_own, "converter"):
        from av.video.reformatter import VideoReformatter

        _own.converter = VideoReformatter()
    return _own.converter


def _key_frames(stream: Any, step: int) -> list[int]:
    entries = stream.index_entries
    return [entry.timestamp // step for entry in entries if entry.is_keyframe]


def read_jpegs(ranges: Ranges, frames: int, indices: Sequence[int]) -> Frames:
    """Of a clip of the fast tier with `frames` frames: only the bytes of the frames asked for."""
    import simplejpeg

    wanted = sorted(set(indices))
    (table,) = ranges([(0, 4 * (frames + 1))])
    offsets = np.frombuffer(table, "<u4")
    pictures = ranges([(int(offsets[i]), int(offsets[i + 1])) for i in wanted])
    found = {
        index: simplejpeg.decode_jpeg(picture, colorspace="RGB")
        for index, picture in zip(wanted, pictures, strict=True)
    }
    return np.stack([found[index] for index in indices])


READERS = {"pyav": read_pyav, "decord": read_decord, "torchcodec": read_torchcodec}


def read_h264(data: bytes, indices: Sequence[int], reader: str = "pyav") -> Frames:
    """By `reader`, with PyAV as the last word: the same pixels.

    decord 0.6 has no wheel for arm64, and refuses a few narrow widths (16, 24, 48 and 72 pixels:
    it takes FFmpeg's padded rows for the picture's).
    """
    if reader != "pyav" and _is_installed(reader):
        try:
            return READERS[reader](data, indices)
        except Exception:
            logger.debug("%s failed on a clip; reading it with PyAV", reader, exc_info=True)
    return read_pyav(data, indices)


@functools.cache
def _is_installed(reader: str) -> bool:
    """Asked at the first read, not at import: the library imports without decord."""
    try:
        importlib.import_module(reader)
    except (ImportError, OSError, RuntimeError):
        logger.warning("%s is not installed here: the store is read with PyAV", reader)
        return False
    return True
