"""How many planted copies `vidpipe data check` finds, and how many pairs that are none.

    python benchmarks/data_check.py FOLDER [--take 80] [--without _mirror]

Of each video below FOLDER (but for those with the text of `--without` in their path) one copy of each
kind is encoded by FFmpeg, all in memory. A row is a kind: its copies are looked for among originals and
copies together. `recall`: of the copies, those found with the right original and mirroring. `false
alarms`: other pairs that are called copies; `candidates`: pairs compared frame by frame, of `pairs`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vidpipe.data.fingerprint import fingerprint, small_frames
from vidpipe.data.layouts.common import walk
from vidpipe.data.near_duplicates import candidates, confirmed

Video = NDArray[np.uint8]
Rate = Fraction


def read(file: str | io.BytesIO) -> tuple[Video, Rate]:
    with av.open(file, "r") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), Fraction(stream.average_rate or 25)


def encoded(
    video: Video, rate: Rate, crf: int, scale: float = 1.0, codec: str = "libx264"
) -> tuple[Video, Rate]:
    """Through the encoder and back."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate))
        height, width = (max(16, round(side * scale / 2) * 2) for side in video.shape[1:3])
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": str(crf)} if codec == "libx264" else {"qmin": "8", "qmax": "8"}
        for picture in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame.reformat(width=width, height=height)))
        container.mux(stream.encode(None))
    file.seek(0)
    return read(file)


def at_rate(video: Video, rate: Rate, new: Rate) -> Video:
    count = int(len(video) * new / rate)
    times = np.arange(count) * float(rate / new)
    return video[times.round().astype(int).clip(0, len(video) - 1)]


Make = Callable[[Video, Rate], tuple[Video, Rate]]
KINDS: dict[str, tuple[bool, Make]] = {
    "encoded, crf 23": (False, lambda v, r: encoded(v, r, 23)),
    "encoded, crf 35": (False, lambda v, r: encoded(v, r, 35)),
    "encoded, MPEG-4": (False, lambda v, r: encoded(v, r, 0, codec="mpeg4")),
    "scaled to 3/2, crf 28": (False, lambda v, r: encoded(v, r, 28, 1.5)),
    "6/5 of the rate": (False, lambda v, r: encoded(at_rate(v, r, r * 6 / 5), r * 6 / 5, 28)),
    "half the rate": (False, lambda v, r: encoded(at_rate(v, r, r / 2), r / 2, 28)),
    "mirrored": (True, lambda v, r: encoded(v[:, :, ::-1], r, 23)),
    "without the first 30 %": (False, lambda v, r: encoded(v[len(v) * 3 // 10 :], r, 23)),
    "without the last 30 %": (False, lambda v, r: encoded(v[: len(v) * 7 // 10], r, 23)),
    "the middle half": (False, lambda v, r: encoded(v[len(v) // 4 : len(v) * 3 // 4], r, 23)),
    "mirrored, cut, scaled, crf 32": (
        True,
        lambda v, r: encoded(v[len(v) // 4 :, :, ::-1], r, 32, 1.5),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--take", type=int, default=100)
    parser.add_argument("--without", default="\0")
    given = parser.parse_args()
    paths = [p for p in sorted(walk(given.folder)) if given.without not in p][: given.take]
    videos = [read(str(given.folder / path)) for path in paths]
    count = len(videos)
    print(f"{count} videos of {given.folder.name}")
    line = "{:30} {:>7} {:>12} {:>10} {:>8}"
    print(line.format("copy", "recall", "false alarms", "candidates", "pairs"))
    small = [small_frames(video) for video, _ in videos]
    rates = [float(rate) for _, rate in videos]
    prints = [fingerprint(*each) for each in zip(small, rates, strict=True)]
    for kind, (mirrored, make) in {"(none)": (False, None), **KINDS}.items():
        copies = [make(*video) for video in videos] if make else []
        all_small = small + [small_frames(video) for video, _ in copies]
        all_rates = rates + [float(rate) for _, rate in copies]
        found = candidates(prints + [fingerprint(*x) for x in zip(all_small, all_rates)][count:])
        pairs = list(confirmed(found, all_small.__getitem__, all_rates))
        right = [p for p in pairs if p.second == p.first + count and p.mirrored == mirrored]
        wrong = [p for p in pairs if p.second != p.first + count or p.mirrored != mirrored]
        total = len(all_small) * (len(all_small) - 1) // 2
        recall = f"{len(right) / len(copies):.3f}" if copies else "-"
        print(line.format(kind, recall, len(wrong), len(found), total), flush=True)
        for pair in wrong:
            names = (
                paths[i % count] + (" (copy)" if i >= count else "")
                for i in (pair.first, pair.second)
            )
            print("   ", *names, f"{pair.similarity:.3f}")


if __name__ == "__main__":
    main()
