"""Short clips of one action each, end to end: longer videos of which is known when each action is.

    python benchmarks/concatenate_clips.py CLIPS OUT [--table index.csv] [--per-video 5]

CLIPS has a table with the columns path and label, and perhaps split, subject and mirrored. OUT gets
`video_NNN.mp4` and `segments.csv` (path, start, end, label, split), which `data.layout: segments` reads.
A video has clips of one split and one subject, in an order that `--seed` decides, all at the first one's
rate and its short side; mirrored clips are videos of their own, and serve no validation. A boundary lies
between two frames, so `start` and `end` are exact.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import pandas as pd

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder
from vidpipe.video.canonical import Frame
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode

TABLE = "segments.csv"


class Span(NamedTuple):
    """A row of the table; start and end in seconds."""

    path: str
    start: float
    end: float
    label: str
    split: str


def concatenate(clips: Sequence[Path], out: Path, crf: int = 14) -> tuple[Fraction, list[int]]:
    """Write the clips to `out`, one after the other; frames a second, and frames of each clip."""
    with av.open(str(clips[0])) as container:
        stream = container.streams.video[0]
        short_side = min(stream.width, stream.height)
    fps, first = decode(clips[0], ExtractConfig(short_side=short_side))
    same = ExtractConfig(short_side=short_side, fps=float(fps))
    counts: list[int] = []

    def frames() -> Iterator[Frame]:
        for number, path in enumerate(clips):
            own = first if number == 0 else decode(path, same)[1]
            counts.append(0)
            for frame in own:
                counts[-1] += 1
                yield frame

    with av.open(str(out), "w") as written:
        video = written.add_stream("libx264", rate=fps)
        video.pix_fmt, video.options = "yuv420p", {"crf": str(crf)}
        for index, frame in enumerate(frames()):
            if index == 0:
                video.height, video.width = frame.shape[:2]
            elif frame.shape[:2] != (video.height, video.width):
                raise VidpipeError(
                    f"{clips[len(counts) - 1]}: {frame.shape[1]}x{frame.shape[0]} pixels, and the "
                    f"video's first clip has {video.width}x{video.height}; one shape a video"
                )
            written.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        written.mux(video.encode(None))
    return fps, counts


def plan(table: pd.DataFrame, per_video: int, seed: int) -> list[pd.DataFrame]:
    """The rows of each video, in order; actions that follow each other differ where they can."""
    mirrored = table.get("mirrored", pd.Series("0", index=table.index)).astype(str) == "1"
    table = table.assign(
        mirrored=mirrored,
        split=table.get("split", "train"),
        subject=table.get("subject", ""),
    )
    table = table[~(mirrored & (table.split == "val"))]
    rng = random.Random(seed)
    videos = []
    for _, own in table.groupby(["split", "subject", "mirrored"], sort=True):
        order = list(own.sort_values("path").index)
        rng.shuffle(order)
        for start in range(0, len(order), per_video):
            videos.append(own.loc[_apart(order[start : start + per_video], own.label)])
    return videos


def _apart(order: list[int], labels: pd.Series) -> list[int]:
    """So that equal labels do not touch, as far as one pass can say."""
    found: list[int] = []
    rest = list(order)
    while rest:
        other = [i for i in rest if not found or labels[i] != labels[found[-1]]]
        found.append((other or rest)[0])
        rest.remove(found[-1])
    return found


def write(clips: Path, out: Path, table: str, per_video: int, seed: int) -> list[Span]:
    """The videos and their table, in `out`, which appears as a whole."""
    source = clips / table
    if not source.is_file():
        raise VidpipeError(f"{source}: no such file; expected a table with columns path and label")
    rows = pd.read_csv(source, dtype=str)
    if missing := {"path", "label"} - set(rows.columns):
        raise VidpipeError(f"{source}: no column {', '.join(sorted(missing))}")
    spans: list[Span] = []
    with atomic_folder(out) as folder:
        for number, own in enumerate(plan(rows, per_video, seed)):
            name = f"video_{number:03d}.mp4"
            fps, counts = concatenate([clips / path for path in own.path], folder / name)
            at = 0
            for label, split, count in zip(own.label, own.split, counts, strict=True):
                start, end = (round(float(n / fps), 6) for n in (at, at + count))
                spans.append(Span(name, start, end, label, split))
                at += count
        pd.DataFrame(spans).to_csv(folder / TABLE, index=False)
    return spans


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--table", default="index.csv")
    parser.add_argument("--per-video", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    spans = write(args.clips, args.out, args.table, args.per_video, args.seed)
    for split in sorted({span.split for span in spans}):
        own = [span for span in spans if span.split == split]
        seconds = sum(span.end - span.start for span in own)
        videos = len({span.path for span in own})
        print(f"{split}: {videos} videos, {len(own)} clips, {seconds:.0f} s")


if __name__ == "__main__":
    main()
