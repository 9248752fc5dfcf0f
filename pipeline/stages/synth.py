"""Stage `synth`: the embedded data set as video files and `labels.csv`."""

from __future__ import annotations

import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.infra.console import progress
from vidpipe.files import atomic_folder
from vidpipe.video.config import SynthConfig
from vidpipe.video.rendered import (
    ClipRow,
    clip_list,
    clip_row,
    render_clip,
    write_clip,
)


def run(config: SynthConfig, out: Path) -> dict[str, Any]:
    """Render every clip into `out`, which appears as a whole. Returns counts."""
    jobs = [(name, index) for name in config.classes for index in range(config.clips_per_class)]
    frames = 0
    # Spawned: a fork of a process that has started threads (torch's) may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
    with atomic_folder(out) as folder:
        for name in config.classes:
            (folder / name).mkdir()
        with ProcessPoolExecutor(workers, mp_context=context) as pool, progress() as bar:
            task = bar.add_task("synth", total=len(jobs), info="")
            pending = [pool.submit(_render, config, *job, folder) for job in jobs]
            try:
                for future in pending:
                    frames += future.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(ClipRow._fields)
            writer.writerows(clip_list(config))
    return {"clips": len(jobs), "frames": frames, "classes": len(config.classes)}


def _render(config: SynthConfig, class_name: str, index: int, folder: Path) -> int:
    """Write one clip; returns its number of frames."""
    frames = render_clip(config, class_name, index)
    path = folder / clip_row(config, class_name, index).path
    write_clip(path, frames, config.fps, config.crf)
    return len(frames)
