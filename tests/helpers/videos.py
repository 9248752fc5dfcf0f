"""Video files of every make."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from clips import moving

from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import extract_one

CONFIG = ExtractConfig(short_side=32)


MILLI = Fraction(1, 1000)


def write_video(
    path: Path,
    frames: np.ndarray,
    times: list[int] | None = None,
    codec: str = "libx264",
    **options: str,
) -> Path:
    """25 frames/s, or each frame at its time in units of 1/1000 s."""
    flags = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], MILLI
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def row_of(path: Path, **options: Any) -> dict[str, Any]:
    return extract_one(path, CONFIG.model_copy(update=options)).row


def good_and_bad_videos(root: Path) -> Path:
    """Three good clips and three that are not, of which one is in a folder of its own."""
    for i in range(3):
        write_video(root / f"good{i}.mp4", np.roll(moving(30 + 7 * i), 9 * i, 2))
    (root / "cut.mp4").write_bytes((root / "good0.mp4").read_bytes()[:-700])
    (root / "text.mp4").write_text("not a video")
    (root / "deep").mkdir()
    (root / "deep" / "empty.mp4").write_bytes(b"")
    return root
