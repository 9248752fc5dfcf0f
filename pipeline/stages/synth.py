"""Stage `synth`: the embedded data set as video files and tables of what they show."""

from __future__ import annotations

import csv
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.infra.console import progress
from vidpipe.data.labels import join_labels
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder
from vidpipe.video import scenes
from vidpipe.video.config import SynthConfig
from vidpipe.video.rendered import ClipRow, clip_row, render_clip, write_clip

LABELS, SPANS = "labels.csv", "spans.csv"
BOXES = ("annotations/train.csv", "annotations/val.csv", "annotations/val_proposals.csv")
LABEL_MAP = "annotations/action_list.pbtxt"
OFF = 0.02
"""Of a proposal's edges, in frame sizes, from those of the shape."""
Rows = list[Sequence[object]]


def run(config: SynthConfig, out: Path) -> dict[str, Any]:
    """Render every clip into `out`, which appears as a whole. Returns counts.

    labels.csv has path, label, split; of motions in turn, spans.csv has path, start, end (seconds),
    label, split. Of two shapes, annotations/ has their boxes in AVA's form, and proposals a little off.
    """
    jobs = _jobs(config)
    frames, rows, boxes = 0, Rows(), Rows()
    # Spawned: a fork of a process that has started threads (torch's) may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
    with atomic_folder(out) as folder:
        for name in {Path(path).parent for *_, path in jobs}:
            (folder / name).mkdir()
        with ProcessPoolExecutor(workers, mp_context=context) as pool, progress() as bar:
            task = bar.add_task("synth", total=len(jobs), info="")
            pending = [pool.submit(_render, config, *job, folder) for job in jobs]
            try:
                for future in pending:
                    count, found, boxed = future.result()
                    frames, rows, boxes = frames + count, rows + found, boxes + boxed
                    bar.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if config.scene == "turns":
            _write(folder / SPANS, ("path", "start", "end", "label", "split"), rows)
        else:
            _write(folder / LABELS, ClipRow._fields, rows)
        if config.scene == "two":
            _write_boxes(folder, config, boxes)
    return {"clips": len(jobs), "frames": frames, "classes": len(config.classes)}


def refuse_other(config: SynthConfig, out: Path) -> None:
    """Raises VidpipeError where `out` holds other videos than would be rendered there."""
    found = {path.relative_to(out).as_posix() for path in out.rglob("*.*") if path.is_file()}
    if other := sorted(
        found - {path for *_, path in _jobs(config)} - {LABELS, SPANS, LABEL_MAP, *BOXES}
    ):
        raise VidpipeError(
            f"{out / other[0]}: not of the data set that is to be rendered there, and would be lost; "
            "name another folder with --out, or remove it"
        )


def _jobs(config: SynthConfig) -> list[tuple[str, int, str]]:
    """What, number and path of every clip."""
    if config.scene != "one":
        return [("backwards" if b else "", i, path) for i, b, path in scenes.names(config)]
    each = range(config.clips_per_class)
    return [(n, i, clip_row(config, n, i).path) for n in config.classes for i in each]


def _write(path: Path, header: Sequence[str], rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_boxes(folder: Path, config: SynthConfig, boxes: Rows) -> None:
    """Rows (split, video, second, x1, y1, x2, y2, label, number) as AVA's files."""
    (folder / LABEL_MAP).parent.mkdir()
    ids = {name: number for number, name in enumerate(config.classes, 1)}
    items = [f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for name, number in ids.items()]
    (folder / LABEL_MAP).write_text("".join(items), encoding="utf-8")
    rng = np.random.default_rng([config.seed, 1])
    lines: dict[str, list[str]] = {name: [] for name in BOXES}
    for split, video, second, *edges, label, number in boxes:
        where = f"{video},{second:04d}"
        own = ",".join(f"{edge:.3f}" for edge in edges)
        lines[f"annotations/{split}.csv"].append(f"{where},{own},{ids[str(label)]},{number}")
        if split == "val":
            near = np.clip(np.array(edges) + rng.uniform(-OFF, OFF, 4), 0, 1)
            found = ",".join(f"{edge:.3f}" for edge in near)
            lines[BOXES[-1]].append(f"{where},{found},{rng.uniform(0.75, 1):.3f}")
    for name, own_lines in lines.items():
        (folder / name).write_text("".join(f"{line}\n" for line in own_lines), encoding="utf-8")


def _render(
    config: SynthConfig, what: str, index: int, path: str, folder: Path
) -> tuple[int, Rows, Rows]:
    """Write one clip; returns its number of frames and its rows of the tables."""
    if config.scene == "one":
        frames, scene = render_clip(config, what, index), None
    else:
        scene = scenes.render(config, index, what == "backwards")
        frames = scene.frames
    write_clip(folder / path, frames, config.fps, config.crf)
    if scene is None:
        return len(frames), [clip_row(config, what, index)], []
    split = scenes.split(config, index)
    if config.scene == "two":
        boxes: Rows = [
            (split, Path(path).stem, second, *box.tolist(), label, number)
            for second, box, label, number in scenes.key_boxes(scene, config.fps)
        ]
        return len(frames), [(path, join_labels(scene.labels), split)], boxes
    spans: Rows = [
        (path, m.start / config.fps, m.end / config.fps, m.label, split) for m in scene.motions
    ]
    return len(frames), spans, []
