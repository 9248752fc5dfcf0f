"""`vidpipe data check`: leaks between the splits and other faults of a data set, before a training."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.table import Table
from torch import Tensor
from torchvision.transforms.functional import resize

from pipeline.infra.console import output, progress
from pipeline.infra.workspace import Workspace
from vidpipe.data.check import (
    NOTES,
    PROBLEMS,
    FingerprintedClips,
    counts,
    findings,
    side_by_side,
)
from vidpipe.data.dataset import CPU, Loader
from vidpipe.data.groups import store_clips
from vidpipe.data.near_duplicates import Pair, candidates, confirmed
from vidpipe.files import write_json, write_text
from vidpipe.params import Params
from vidpipe.video.config import ExtractConfig
from vidpipe.video.store import FrameStore, read_manifest
from vidpipe.viz.data import plot_contact_sheet

LISTED = 12
"""Findings of a kind that are printed."""
DRAWN = 24
"""Pairs on the contact sheet."""
CACHED_CLIPS = 1024
SMALL_SIDE = 64
"""Short side of the temporary store that videos are read into, pixels."""


def check(
    params: Params, place: Workspace, store: Path | str, similarity: float, as_json: bool
) -> bool:
    """Look at all clips of `store`, print what was found, and write it to `results/data`; whether there
    are problems. With `as_json` print JSON and write no file."""
    manifest = read_manifest(store)
    clips = store_clips(store, params.data)
    fingerprinted = FingerprintedClips(FrameStore(store, reader=params.data.reader))
    pairs = _pairs(fingerprinted, params.extract.num_workers, similarity)
    table = findings(manifest, clips, pairs)
    summary: dict[str, Any] = {
        "clips": len(clips),
        "groups": len(clips.group_names()),
        "found": counts(table),
        "findings": [_plain(row) for row in table.to_dict("records")],
    }
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        _print(summary, table)
        folder = place.results / "data"
        write_json(folder / "check.json", summary)
        write_text(folder / "check.csv", table.to_csv(index=False))
        written = [folder / "check.json", folder / "check.csv"]
        (folder / "check.png").unlink(missing_ok=True)  # of an earlier run
        if strips := _strips(fingerprinted.store, pairs, table):
            title = f"copies: {len(strips) // 2} of {len(pairs)} pairs"
            plot_contact_sheet(strips, title, folder / "check.png")
            written.append(folder / "check.png")
        print(*written, sep="\n")
    return any(summary["found"][kind] for kind in PROBLEMS)


def small_frames_only(extract: ExtractConfig) -> ExtractConfig:
    """An extraction of no more than the check needs, which goes past any number of bad files."""
    small = {"short_side": SMALL_SIDE, "tier": "compact", "crf": 18, "max_bad_fraction": 1.0}
    return extract.model_copy(update=small)


def _pairs(clips: FingerprintedClips, workers: int, similarity: float) -> list[Pair]:
    loader = Loader(
        clips,
        workers=workers if len(clips) > 100 * workers else 0,
        prefetch=4,
        keep=False,
        device=CPU,
        batch_size=None,
        collate_fn=_as_it_is,
    )
    prints = []
    with progress() as bar:
        task = bar.add_task("hash clips", total=len(clips), info="")
        for found in loader:
            prints.append(found)
            bar.advance(task)
        likely = candidates(prints)  # type: ignore[arg-type]
        small = lru_cache(maxsize=CACHED_CLIPS)(clips.small)
        task = bar.add_task("compare pairs", total=len(likely), info="")
        pairs = []
        for pair in confirmed(likely, small, clips.store.rows.fps.tolist(), similarity):
            pairs.append(pair)
            bar.update(task, info=f"{len(pairs)} alike")
        bar.update(task, completed=len(likely))
    return pairs


def _as_it_is(item: Any) -> Any:
    return item


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """Without what does not apply, numbers as JSON has them."""
    present = {str(key): value for key, value in row.items() if not pd.isna(value)}
    return {k: v.item() if hasattr(v, "item") else v for k, v in present.items()}


def _print(summary: dict[str, Any], table: pd.DataFrame) -> None:
    console = output()
    overview = Table("found", title=f"{summary['clips']:,} clips in {summary['groups']:,} groups")
    overview.add_column("", justify="right")
    overview.add_column("what it means")
    for kind, meaning in (PROBLEMS | NOTES).items():
        if kind == next(iter(NOTES)):
            overview.add_section()
        overview.add_row(kind, f"{summary['found'][kind]:,}", meaning)
    console.print(overview)
    for name, rows in table.groupby("kind", sort=False):
        listed = Table("first", "second", "", title=str(name))
        for row in rows.head(LISTED).to_dict("records"):
            listed.add_row(*_cells(_plain(row)))
        if len(rows) > LISTED:
            listed.add_row(f"... {len(rows) - LISTED:,} more ...", "", "")
        console.print(listed)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    if "second" not in row:
        group = f"all in {row['first_group']}" if "first_group" in row else ""
        return row["first"], group, f"{row['clips']} clips"
    sides = [f"{row[s]} ({row[f'{s}_label']}, {row[f'{s}_split']})" for s in ("first", "second")]
    how = f"{row['similarity']:.3f}" + (", mirrored" if row["mirrored"] else "")
    if row["shared"] < 0.98 or abs(row["offset_s"]) > 0.1:
        how += f", {row['shared']:.0%} of the shorter from {row['offset_s']:+.1f} s"
    return sides[0], sides[1], how


def _strips(store: FrameStore, pairs: list[Pair], table: pd.DataFrame) -> list[tuple[str, Tensor]]:
    """Both clips of the first pairs of the table, one below the other."""
    row = {id_: number for number, id_ in enumerate(store.rows.id)}
    known = {(pair.first, pair.second): pair for pair in pairs}
    strips: list[tuple[str, Tensor]] = []
    for kind, first, second in zip(table.kind, table["first"], table["second"], strict=True):
        pair = known.pop((row.get(first, -1), row.get(second, -1)), None)
        if pair is None or len(strips) >= 2 * DRAWN:  # bytes of which the store has one copy; drawn
            continue
        found = store.rows.iloc[[pair.first, pair.second]]
        lengths, rates = found.frames.tolist(), found.fps.tolist()
        videos = side_by_side(store.read, tuple(lengths), tuple(rates), pair)
        notes = (str(kind), "mirrored" if pair.mirrored else "")
        names = [f"{id_[-34:]} ({split})" for id_, split in zip(found.id, found.split, strict=True)]
        for name, video, note in zip(names, videos, notes, strict=True):
            small = resize(torch.from_numpy(video).permute(0, 3, 1, 2), [96], antialias=True)
            strips.append((f"{note}\n{name}", small))
    return strips
