"""Kinetics-400, -600 and -700: train.csv, val.csv, test.csv of the data set's authors.

Columns label, youtube_id, time_start, time_end (seconds), split and in some editions is_cc. Videos
are `{id}_{start:06d}_{end:06d}` or `{id}` with any suffix, in any folders below the root. Classes are
in alphabetical order, as in every published list of them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    fail,
    find_file,
    malformed,
    need_file,
)
from vidpipe.data.layouts.tables import need_columns, read_table

EXPECTED = "label,youtube_id,time_start,time_end,split with times in seconds"
_EDITIONS = ("400", "600", "700", "700_2020")
_PREFIXES = (
    "",
    "kinetics_",
    *(f"{name}{n}_" for n in _EDITIONS for name in ("k", "kinetics", "kinetics_")),
)


def _names(*splits: str) -> list[str]:
    return [f"{prefix}{split}.csv" for prefix in _PREFIXES for split in splits]


def read(root: Path, config: DataConfig) -> Found:
    """Validation is val.csv, or the labelled rows of test.csv where there is none."""
    folders = annotation_folders(root, config, ("annotations", "labels", "lists"))
    train = need_file(root, folders, _names("train"), "kinetics")
    val = find_file(root, folders, _names("val", "validate", "validation"))
    test = None if val else find_file(root, folders, _names("test"))
    if val is None and test is None:
        need_file(root, folders, _names("val", "validate"), "kinetics")
    index = VideoIndex(root)
    rows = _rows(train, "train", index)
    classes = tuple(sorted({label for _, label, *_ in rows}))
    for file, split in ((val, "val"), (test, "test")):
        if file is not None:
            rows += _rows(file, split, index)
    return Found(rows, classes)


def _rows(file: Path, split: str, index: VideoIndex) -> list[Row]:
    table = read_table(file)
    if split == "test":
        # The first editions were published without the labels of their test videos.
        table = table[table.label != ""] if "label" in table.columns else table[:0]
        if table.empty:
            raise fail(f"data.annotations: {file}: no row has a label, and there is no val.csv")
    need_columns(table, ["label", "youtube_id", "time_start", "time_end"], file)
    times = [pd.to_numeric(table[c], errors="coerce") for c in ("time_start", "time_end")]
    start, end = times
    good = (
        (table.label != "")
        # A spreadsheet turns ids that begin with - into #NAME?.
        & table.youtube_id.str.fullmatch(r"[A-Za-z0-9_-]+")
        & (start >= 0)
        & (start < end)
        & (end < 1e6)
    ).to_numpy(dtype=bool)
    if not good.all():
        bad = int((~good).argmax())
        raise malformed(file, table.index[bad], EXPECTED, ",".join(table.iloc[bad]))
    rows: list[Row] = []
    for number, label, video, s, e in zip(
        table.index.tolist(),
        table.label.tolist(),
        table.youtube_id.tolist(),
        start.astype(int).tolist(),
        end.astype(int).tolist(),
        strict=True,
    ):
        name = f"{video}_{s:06d}_{e:06d}"
        path = index.find(name, split, label) or index.find(video, split, label)
        expected = f"{split}/{label.replace('/', '_')}/{name}.mp4"
        rows.append((path or expected, label, split, path is None, str(file), number))
    return rows
