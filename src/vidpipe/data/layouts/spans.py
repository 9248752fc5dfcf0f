"""Layouts whose rows are spans of files: a table of start and end, ActivityNet's and THUMOS' JSON."""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vidpipe.data.config import DataConfig
from vidpipe.data.labels import join_labels, split_labels
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    fail,
    malformed,
    read_json,
    resolve_inside,
    shown,
)
from vidpipe.data.layouts.generic import SPLITS
from vidpipe.data.layouts.several import table_labels
from vidpipe.data.layouts.tables import need_columns, read_table

SUBSETS = {"training": "train", "validation": "val", "testing": "test", **SPLITS}
ENTRY = "an object with subset and annotations, each {segment: [start, end], label}"
_LONGEST_S = 1e6


def segments(root: Path, config: DataConfig) -> Found:
    """A CSV or Parquet file inside the root with path, start, end (seconds), label and perhaps split."""
    if config.annotations is None:
        raise fail("data.annotations: layout segments needs a CSV or Parquet file inside data.root")
    source = resolve_inside(root, config.annotations)
    table, names = read_table(source), config.columns
    need_columns(table, [names.path, "start", "end", names.label], source, "; see data.columns")
    if config.task == "multilabel":
        labels = table_labels(table, source, config)
    else:
        labels = table[names.label].tolist()
    paths = table[names.path].tolist()
    given = table[names.split].str.lower().tolist() if names.split in table.columns else None
    rows: list[Row] = []
    spans: list[tuple[float, float]] = []
    for i, (number, path, label) in enumerate(zip(table.index, paths, labels, strict=True)):
        split = "" if given is None else SPLITS.get(given[i])
        if not path or not label or split is None:
            raise malformed(
                source, number, "path, start, end, label and split train or val", _text(table, i)
            )
        spans.append(_span(table.start.iloc[i], table.end.iloc[i], f"{source}: row {number}"))
        absent = not os.path.isfile(f"{root}/{path}")  # noqa: PTH113
        rows.append((path, label, split, absent, str(source), int(number)))
    return _whole(rows, spans, config)


def activitynet(root: Path, config: DataConfig) -> Found:
    """One JSON of ActivityNet's form, as THUMOS' have too: {database: {ID: {subset, annotations}}};
    `ID.mp4` or `v_ID.mp4`. Row numbers count the annotations of a video."""
    if config.annotations is None:
        places = annotation_folders(root, config, ())
        files = sorted(places[0].glob("*.json"))
        if len(files) != 1:
            many = f"{len(files)} *.json here" if files else "no *.json here"
            raise fail(
                f"data.annotations: {places[0]}: {many}; layout activitynet needs it: set "
                "data.annotations to the file"
            )
        source = files[0]
    else:
        source = resolve_inside(root, config.annotations)
    content = read_json(source)
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise fail(f"data.annotations: {source}: expected an object with the key database")
    index = VideoIndex(root)
    rows: list[Row] = []
    spans: list[tuple[float, float]] = []
    for video, entry in database.items():
        good = isinstance(entry, dict) and isinstance(entry.get("annotations", []), list)
        split = SUBSETS.get(str(entry.get("subset")).lower()) if good else None
        if not good or split is None:
            raise fail(
                f"data.annotations: {source}: {video}: expected {ENTRY}, got {shown(entry)!r}"
            )
        path = index.find(video) or index.find(f"v_{video}")
        for number, one in enumerate(entry.get("annotations", []), 1):
            where = f"data.annotations: {source}: {video}, annotation {number}"
            segment = one.get("segment") if isinstance(one, dict) else None
            if (
                not isinstance(segment, list)
                or len(segment) != 2
                or not isinstance(one.get("label"), str)
            ):
                raise fail(f"{where}: expected {ENTRY}, got {shown(one)!r}")
            spans.append(_span(segment[0], segment[1], where))
            file = f"{source}: {video}"
            rows.append((path or f"{video}.mp4", one["label"], split, path is None, file, number))
    return _whole(rows, spans, config)


def _text(table: pd.DataFrame, i: int) -> str:
    return ",".join(str(value) for value in table.iloc[i])


def _span(start: object, end: object, where: str) -> tuple[float, float]:
    try:
        first, last = float(start), float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        first = last = math.nan
    if not 0 <= first < last <= _LONGEST_S:
        raise fail(
            f"{where}: from {shown(start)!r} to {shown(end)!r}; expected seconds, 0 <= start < end"
        )
    return first, last


def _whole(rows: Sequence[Row], spans: Sequence[tuple[float, float]], config: DataConfig) -> Found:
    """Spans of one file in order, none over another. Of several labels, equal spans are one.

    Raises VidpipeError, with file and row, for two that overlap and for a file on both sides of a split.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], spans[i], rows[i][5]))
    kept: list[Row] = []
    times: list[tuple[float, float]] = []
    for i in order:
        path, label, split, absent, file, number = rows[i]
        if kept and kept[-1][0] == path:
            last = kept[-1]
            if last[2] != split:
                raise fail(f"{file}: row {number}: {path} is in split {last[2]!r} and in {split!r}")
            if config.task == "multilabel" and times[-1] == spans[i]:
                both = {*split_labels(last[1]), *split_labels(label)}
                kept[-1] = (path, join_labels(sorted(both)), *last[2:])
                continue
            if spans[i][0] < times[-1][1]:
                raise fail(
                    f"{file}: row {number}: {spans[i][0]:g} to {spans[i][1]:g} s of {path} overlaps "
                    f"{times[-1][0]:g} to {times[-1][1]:g} s of row {last[5]}; give spans that follow "
                    "each other"
                )
        kept.append((path, label, split, absent, file, number))
        times.append(spans[i])
    return Found(kept, spans=times)
