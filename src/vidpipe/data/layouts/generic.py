"""Layouts of one's own data: a folder a class, or a table with a row a video."""

from __future__ import annotations

import os.path
from pathlib import Path

from vidpipe.data.config import DataConfig
from vidpipe.data.group_pattern import is_pattern
from vidpipe.data.layouts import several
from vidpipe.data.layouts.common import (
    Found,
    fail,
    resolve_inside,
    shown,
    walk,
)
from vidpipe.data.layouts.tables import need_columns, read_table

SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


def folders(root: Path, config: DataConfig) -> Found:
    """`root/CLASS/**/name.mp4`. Hidden files and folders are skipped; splits are drawn."""
    if config.task == "multilabel":
        return several.folders(root, config)
    if config.annotations is not None:
        raise fail(
            "data.annotations: layout folders has none; set it to null, or data.layout: table"
        )
    return Found(
        [(path, path.partition("/")[0], "", False, "", 0) for path in walk(root) if "/" in path]
    )


def table(root: Path, config: DataConfig) -> Found:
    """A CSV or Parquet file inside the root with a path, a label and perhaps a split a row."""
    if config.annotations is None:
        raise fail("data.annotations: layout table needs a CSV or Parquet file inside data.root")
    source = resolve_inside(root, config.annotations)
    rows = read_table(source)
    names = config.columns
    conditions = sorted({column for rule in config.keep.values() for column in rule})
    hint = "; see data.columns and data.keep"
    labelled = [] if config.task == "multilabel" else [names.label]
    need_columns(rows, [names.path, *labelled, *conditions], source, hint)
    group = None if config.group is None or is_pattern(config.group) else config.group
    if group is not None:
        need_columns(
            rows,
            [group],
            source,
            "; data.group is a column, or a pattern with {braces} such as */{*}_*",
        )
    needed = {"path or no label" if labelled else "path": [names.path, *labelled]}
    if group is not None:
        needed[f"{group} (data.group)"] = [group]
    for what, columns in needed.items():
        empty = (rows[columns] == "").any(axis=1).to_numpy()
        if empty.any():
            raise fail(
                f"{source}: row {rows.index[int(empty.argmax())]} has no {what}: "
                f"{shown(rows.iloc[int(empty.argmax())].to_dict())}"
            )
    if names.split in rows.columns:
        split = rows[names.split].str.lower().map(SPLITS)
        if split.isna().any():
            bad = int(split.isna().to_numpy().argmax())
            raise fail(
                f"{source}: row {rows.index[bad]}: split {rows[names.split].iloc[bad]!r} of "
                f"{rows[names.path].iloc[bad]}; expected train or val"
            )
        kept = split.notna()
        for name, rule in config.keep.items():
            if name not in ("train", "val"):
                raise fail(f"data.keep.{name}: no such split; expected train or val")
            for column, value in rule.items():
                # Test rows may serve as val.
                kept &= ((split == "train") != (name == "train")) | (rows[column] == value)
        rows, split = rows[kept], split[kept]
        splits = split.tolist()
    elif config.keep:
        raise fail(f"data.keep: {source} has no column {names.split!r}; see data.columns")
    else:
        splits = [""] * len(rows)
    labels = rows[names.label].tolist() if labelled else several.table_labels(rows, source, config)
    paths = rows[names.path].tolist()
    # Path.is_file takes five times as long, and raises for names that are too long.
    missing = [not os.path.isfile(f"{root}/{path}") for path in paths]  # noqa: PTH113
    file = str(source)
    return Found(
        [
            (path, label, split, absent, file, row)
            for path, label, split, absent, row in zip(
                paths, labels, splits, missing, rows.index.tolist(), strict=True
            )
        ],
        groups=None if group is None else rows[group].tolist(),
    )
