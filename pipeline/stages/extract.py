"""Stage `extract`: video files -> frame store and manifest; damaged files are quarantined.

A decoder runs in a process of its own. One that hangs or dies costs its video and is replaced.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.infra.console import console, progress
from vidpipe.config.identity import config_hash
from vidpipe.data.boxes import FILE, BoxRows
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import Item, Listing, list_items, resolve_inside
from vidpipe.data.spans import rows_of_file, typical_length
from vidpipe.errors import VidpipeError
from vidpipe.files import disk_errors_named
from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one, quarantined
from vidpipe.video.guard import Event, Guards
from vidpipe.video.quarantine import QuarantineError
from vidpipe.video.store import read_manifest
from vidpipe.video.writer import StoreWriter

Task = tuple[int, Path]
MOST_NAMED = 20
"""Key frames that are named one by one."""
Work = Callable[[Path, ExtractConfig], Extracted]


def run(
    data: DataConfig, extract: ExtractConfig, out: Path, work: Work = extract_one
) -> dict[str, Any]:
    """Write the store to `out` as a whole. Returns counts: clips, frames, and one per reason.

    Killed at any moment and run again, it goes on where it was. Raises VidpipeError when more than
    `extract.max_bad_fraction` of the files are bad, or the disk is full or read-only; what was decoded
    is kept for the next try.
    """
    listing = list_items(data)
    root = Path(data.root)
    spans: dict[str, list[Item]] = {}
    for item in listing.items:
        spans.setdefault(item.path, []).append(item)
    files = [own[0] for own in spans.values()]  # each is decoded once, however many spans it has
    listed = [
        {"id": id_, "path": item.path, "label": item.label, "split": item.split}
        | ({"group": item.group} if data.group is not None else {})
        for id_, item in zip(_unique_ids(files), files, strict=True)
    ]
    # Shards hold all classes: reading a few at a time (train.shuffle: shards) must not skew batches.
    random.Random(0).shuffle(listed)
    sources = [resolve_inside(root, row["path"]) for row in listed]
    stats = [_stat(source) for source in sources]
    with ExitStack() as stack:
        stack.enter_context(disk_errors_named(out.parent))
        writer = StoreWriter(
            out,
            config_hash(data, extract, listing.classes, listed, *_identity(listing)),
            listed,
            stats,
            shard_bytes=int(extract.shard_mb * 2**20),
            timeout_s=extract.timeout_s,
        )
        stack.enter_context(closing(writer))
        if writer.finished:
            found = read_manifest(out).rows
            return _summary([dict(row) for _, row in found.iterrows()])
        pending = writer.pending()
        if len(pending) < len(listed):
            console.print(
                f"going on: {len(listed) - len(pending)} of {len(listed)} videos are done"
            )
        with progress() as bar:
            task = bar.add_task(
                "extract", total=len(listed), completed=len(listed) - len(pending), info=""
            )
            for index, clip in _decode(((i, sources[i]) for i in pending), extract, work):
                writer.add(index, clip)
                speed = bar.tasks[0].finished_speed or bar.tasks[0].speed or 0
                bar.update(task, advance=1, info=f"{speed:.1f} clips/s")
        _refuse_if_too_bad(writer.all_rows(), extract)
        boxes = None
        if listing.boxes is not None:
            boxes = FILE, _boxes_of(listing.boxes, writer.all_rows(), extract)
        of_file = None
        if listing.spans:
            piece = typical_length(listing.items)

            def of_file(row: dict[str, Any]) -> list[dict[str, Any]]:
                none = "" if data.task == "multilabel" else data.background
                background = None if data.background is None else none
                return rows_of_file(row, spans[row["path"]], background, piece)

            _refuse_if_too_bad(
                [own for row in writer.all_rows() for own in of_file(row)], extract, "spans"
            )
        rows = writer.finish(listing.classes, extract.tier, data.group, data.task, boxes, of_file)
    return _summary(rows)


def _identity(listing: Listing) -> list[Any]:
    if listing.spans:
        return [[(i.path, i.label, i.start_s, i.end_s) for i in listing.items]]
    return [] if listing.boxes is None else [listing.boxes.sha256]


def _boxes_of(boxes: BoxRows, rows: list[dict[str, Any]], config: ExtractConfig) -> bytes:
    """Of the usable videos. Key frames outside their video are named, and left out."""
    kept, bad = boxes.in_store(rows)
    for path, second, has in bad[:MOST_NAMED]:
        console.print(f"left out key frame {path}, second {second}: {has}")
    if len(bad) > MOST_NAMED:
        console.print(f"left out {len(bad) - MOST_NAMED} more key frames outside their videos")
    if len(bad) > config.max_bad_fraction * len(np.unique(boxes.key_frames)):
        path, second, has = bad[0]
        raise VidpipeError(
            f"extract: {len(bad)} key frames lie outside their videos (first {path}, second {second}: "
            f"{has}), more than extract.max_bad_fraction {config.max_bad_fraction:g}; check "
            "data.detection.start_s, or raise it"
        )
    return kept.to_bytes()


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    reasons = Counter(row["reason"] for row in rows if row["status"] != "ok")
    for row in rows:
        if row["status"] != "ok":
            console.print(f"quarantined {row['path']}: {row['reason']} ({row['detail']})")
    ok = [row for row in rows if row["status"] == "ok"]
    return {
        "clips": len(ok),
        "frames": sum(row["frames"] for row in ok),
        "quarantined": sum(reasons.values()),
        **{f"quarantined_{reason}": count for reason, count in sorted(reasons.items())},
    }


def _stat(source: Path) -> tuple[int, int]:
    try:
        found = source.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _decode(
    tasks: Iterable[Task], config: ExtractConfig, work: Work
) -> Iterator[tuple[int, Extracted]]:
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    if not address:
        yield from decode_here(tasks, config, work, config.num_workers)
    else:
        from pipeline.infra.ray.tasks import run_tasks

        yield from run_tasks(
            tasks, lambda: OneDecoder(config, work), config.num_workers, address, "extract"
        )


def _guarded(config: ExtractConfig, work: Work, workers: int) -> Guards[Task, Extracted]:
    return Guards(partial(_extracted, config, work), config.timeout_s, workers)


def _extracted(config: ExtractConfig, work: Work, task: Task) -> Iterator[Extracted]:
    yield work(task[1], config)


def decode_here(
    tasks: Iterable[Task], config: ExtractConfig, work: Work, workers: int
) -> Iterator[tuple[int, Extracted]]:
    """Results as they come, from `workers` processes of this machine."""
    with _guarded(config, work, workers) as guards:
        yield from _outcomes(guards.run(tasks))


def _outcomes(events: Iterable[Event[Task, Extracted]]) -> Iterator[tuple[int, Extracted]]:
    for event in events:
        if isinstance(event.result, QuarantineError):
            yield event.task[0], quarantined(event.result.reason, event.result.detail)
        elif event.result is not None:
            yield event.task[0], event.result


class OneDecoder:
    """What each worker of a cluster holds: one guarded process, as on a single machine."""

    def __init__(self, config: ExtractConfig, work: Work) -> None:
        self.guards = _guarded(config, work, 1)

    def __call__(self, task: Task) -> tuple[int, Extracted]:
        (result,) = _outcomes(self.guards.run([task]))
        return result


def _unique_ids(items: list[Item]) -> list[str]:
    """The path without its suffix; with it where two files differ by nothing else."""
    stems = [item.path.rpartition(".")[0] or item.path for item in items]
    count = Counter(stems)
    return [item.path if count[stem] > 1 else stem for item, stem in zip(items, stems, strict=True)]


def _refuse_if_too_bad(
    rows: list[dict[str, Any]], config: ExtractConfig, what: str = "videos"
) -> None:
    # How many files may be absent is data.max_missing_fraction's business.
    present = [row for row in rows if row["reason"] != "missing_file"]
    bad = [row for row in present if row["status"] != "ok"]
    if len(bad) > config.max_bad_fraction * len(present):
        reasons = Counter(row["reason"] for row in bad)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise VidpipeError(
            f"extract: {len(bad)} of {len(present)} {what} are bad ({listed}; first "
            f"{bad[0]['path']}: {bad[0]['detail']}), more than extract.max_bad_fraction "
            f"{config.max_bad_fraction:g}; raise it to go on without them (nothing is decoded again)"
        )
    for split in ("train", "val"):
        if not any(row["status"] == "ok" and row["split"] == split for row in rows):
            raise VidpipeError(f"extract: no usable video is left in split {split!r}")
