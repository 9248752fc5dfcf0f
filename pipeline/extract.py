"""Stage `extract`: video files -> frame store and manifest; damaged files are quarantined."""

from __future__ import annotations

import concurrent.futures as futures
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from pipeline.console import console, progress
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import Item, list_items, resolve_inside
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder
from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import extract_one, quarantined
from vidpipe.video.store import shard_path, write_manifest


def run(data: DataConfig, extract: ExtractConfig, out: Path) -> dict[str, Any]:
    """Write the store to `out` as a whole. Returns counts: clips, frames, and one per reason.

    Raises VidpipeError when more than `extract.max_bad_fraction` of the files are bad.
    """
    listing = list_items(data)
    items = listing.items
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the store, so that a full disk is met here and parts can be moved without a copy.
    with tempfile.TemporaryDirectory(prefix=".extract.", dir=out.parent) as parts:
        rows = _decode_all(items, Path(data.root), Path(parts), extract)
        _mark_duplicates(rows)
        _refuse_if_too_bad(rows, extract)
        with atomic_folder(out) as folder:
            _write_shards(rows, Path(parts), folder, extract.shard_mb * 2**20)
            write_manifest(folder, rows, listing.classes)
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


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index}.mp4"


def _decode_all(
    items: list[Item], root: Path, parts: Path, config: ExtractConfig
) -> list[dict[str, Any]]:
    """A row an item, in order. A decoder that hangs or dies costs one video and one process."""
    ids = _unique_ids(items)
    measured: list[dict[str, Any]] = []
    workers = min(config.num_workers, len(items))
    with ProcessPool(max_workers=workers) as pool, progress() as bar:
        task = bar.add_task("extract", total=len(items), info="")
        pending = []
        for index, item in enumerate(items):
            source = resolve_inside(root, item.path)
            future = pool.schedule(
                extract_one, args=[source, _part(parts, index), config], timeout=config.timeout_s
            )
            pending.append(future)
        for future in pending:
            try:
                measured.append(future.result())
            except futures.TimeoutError:
                measured.append(quarantined("timeout", f"longer than {config.timeout_s:g} s"))
            except ProcessExpired as error:
                measured.append(quarantined("crashed", f"the decoder's process died: {error}"))
            bar.advance(task)
    return [
        {"id": id_, "path": item.path, "label": item.label, "split": item.split, **row}
        for id_, item, row in zip(ids, items, measured, strict=True)
    ]


def _unique_ids(items: list[Item]) -> list[str]:
    """The path without its suffix; with it where two files differ by nothing else."""
    stems = [str(Path(item.path).with_suffix("")) for item in items]
    count = Counter(stems)
    return [item.path if count[stem] > 1 else stem for item, stem in zip(items, stems, strict=True)]


def _mark_duplicates(rows: list[dict[str, Any]]) -> None:
    """The same bytes twice would leak from train into val, or count twice: keep the first."""
    seen: dict[str, str] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        first = seen.setdefault(row["sha256"], row["path"])
        if first != row["path"]:
            row.update(quarantined("duplicate", f"same bytes as {first}", row["sha256"]))


def _refuse_if_too_bad(rows: list[dict[str, Any]], config: ExtractConfig) -> None:
    reasons = Counter(row["reason"] for row in rows if row["status"] != "ok")
    bad = sum(reasons.values())
    if bad > config.max_bad_fraction * len(rows):
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        worst = next(row for row in rows if row["status"] != "ok")
        raise VidpipeError(
            f"extract: {bad} of {len(rows)} videos are bad ({listed}; first {worst['path']}: "
            f"{worst['detail']}), more than extract.max_bad_fraction {config.max_bad_fraction:g}"
        )
    for split in ("train", "val"):
        if not any(row["status"] == "ok" and row["split"] == split for row in rows):
            raise VidpipeError(f"extract: no usable video is left in split {split!r}")


def _write_shards(rows: list[dict[str, Any]], parts: Path, folder: Path, shard_bytes: int) -> None:
    """Parts end to end, in the rows' order: the bytes do not depend on the number of workers."""
    shard = offset = 0
    file = None
    try:
        for index, row in enumerate(rows):
            row.update(shard=-1, offset=0, nbytes=0)
            if row["status"] != "ok":
                continue
            data = _part(parts, index).read_bytes()
            if file is not None and offset + len(data) > shard_bytes:
                file.close()
                file, shard, offset = None, shard + 1, 0
            if file is None:
                file = shard_path(folder, shard).open("wb")
            file.write(data)
            row.update(shard=shard, offset=offset, nbytes=len(data))
            offset += len(data)
    finally:
        if file is not None:
            file.close()
