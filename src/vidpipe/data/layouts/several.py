"""Layouts of task multilabel: any number of classes a video, or none.

Each label of a row is one text of them all, `data.labels.join_labels`, sorted and each once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vidpipe.data.config import DataConfig
from vidpipe.data.labels import JOINT, join_labels
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    fail,
    find_file,
    malformed,
    need_file,
    read_lines,
    read_text,
    shown,
    walk,
)
from vidpipe.data.layouts.tables import need_columns, read_table

YES, NO = frozenset(("1", "1.0", "true", "yes")), frozenset(("", "0", "0.0", "false", "no"))
OF_FOLDER = "labels.txt"
"""The label file of all videos of a folder that have none of their own."""
_ACTION = re.compile(r"(\S+) (\d+(?:\.\d*)?) (\d+(?:\.\d*)?)")
CHARADES = "columns id and actions, such as `c092 11.90 21.20;c147 0.00 12.60`"


def joined(labels: Iterable[str]) -> str:
    """As a manifest has them, whatever their order and however often each is said."""
    return join_labels(sorted({label.strip() for label in labels} - {""}))


def table_labels(table: pd.DataFrame, source: Path, config: DataConfig) -> list[str]:
    """The labels of each row of a table: parts of one column, or the columns that hold a 1.

    Raises VidpipeError, with file and row, for a value that is neither 0 nor 1, and for a class whose
    name has the sign in it that joins several.
    """
    names = config.columns
    if config.separator is not None:
        need_columns(table, [names.label], source, "; see data.columns and data.separator")
        texts = table[names.label].tolist()
        if config.separator != JOINT:
            bad = next((i for i, text in enumerate(texts) if JOINT in text), None)
            if bad is not None:
                raise fail(
                    f"{source}: row {table.index[bad]}: label {texts[bad]!r}: a class of several cannot "
                    f"have {JOINT} in its name"
                )
        known: dict[str, str] = {}  # as many texts as there are sets of labels
        return [
            known.setdefault(text, joined(text.split(config.separator))) if text else ""
            for text in texts
        ]
    others = {names.path, names.split, names.label, config.group}
    others |= {column for rule in config.keep.values() for column in rule}
    columns = list(config.classes or (str(name) for name in table.columns if name not in others))
    need_columns(table, columns, source, "; data.separator null takes a column a class")
    if not columns:
        raise fail(f"{source}: no column of a class; data.separator null takes a column a class")
    values = table[columns].apply(lambda column: column.str.strip().str.lower())
    yes = values.isin(YES).to_numpy()
    wrong = ~(yes | values.isin(NO).to_numpy())
    if wrong.any():
        row, column = (int(i[0]) for i in wrong.nonzero())
        raise fail(
            f"{source}: row {table.index[row]}: {shown(values.iloc[row, column])!r} in column "
            f"{columns[column]!r}; expected 1 where the video has the class and 0 where not"
        )
    return [joined(name for name, own in zip(columns, row, strict=True) if own) for row in yes]


def folders(root: Path, config: DataConfig) -> Found:
    """Videos with a label file, a class a line: `name.txt` beside `name.mp4`, or `labels.txt` in its
    folder for all that have no own. An empty one: none of the classes."""
    if config.annotations is not None:
        raise fail(
            "data.annotations: layout folders has none; set it to null, or data.layout: table"
        )
    rows: list[Row] = []
    read: dict[Path, str] = {}
    for path in walk(root):
        own = (root / path).with_suffix(".txt")
        file = own if own.is_file() else own.with_name(OF_FOLDER)
        if file not in read:
            if not file.is_file():
                raise fail(
                    f"data.root: {root / path}: no label file; expected {own.name} or {OF_FOLDER} "
                    "beside it, with a class a line, or empty for none of them"
                )
            read[file] = joined(read_text(file).splitlines())
        rows.append((path, read[file], "", False, str(file), 1))
    return Found(rows)


def charades(root: Path, config: DataConfig) -> Found:
    """`Charades_v1_train.csv` and `Charades_v1_test.csv`, `Charades_v1_classes.txt`; `ID.mp4`. A video's
    labels are those of all its actions, in whichever seconds."""
    places = annotation_folders(root, config, ("Charades", "annotations", "labels"))
    codes = _charades_classes(
        need_file(root, places, ["Charades_v1_classes.txt", "classes.txt"], "charades")
    )
    train = need_file(root, places, ["Charades_v1_train.csv", "train.csv"], "charades")
    test = find_file(root, places, ["Charades_v1_test.csv", "test.csv", "val.csv"])
    index = VideoIndex(root)
    rows = _charades_rows(train, "train", codes, index)
    if test is None:
        rows = [(path, label, "", *rest) for path, label, _, *rest in rows]  # type: ignore[misc]
    else:
        rows += _charades_rows(test, "val", codes, index)
    return Found(rows, tuple(codes.values()))


def _charades_classes(file: Path) -> dict[str, str]:
    codes: dict[str, str] = {}
    for number, line in read_lines(file):
        code, _, name = line.partition(" ")
        if not name or code in codes:
            raise malformed(file, number, "`c000 name`, each code once", line)
        codes[code] = name.strip()
    return codes


def _charades_rows(file: Path, split: str, codes: dict[str, str], index: VideoIndex) -> list[Row]:
    table = read_table(file)
    need_columns(table, ["id", "actions"], file)
    rows: list[Row] = []
    for number, video, text in zip(table.index.tolist(), table.id, table.actions, strict=True):
        actions = text.split(";") if text else []
        found = [_ACTION.fullmatch(action.strip()) for action in actions]
        if not video or not all(found):
            raise malformed(file, number, CHARADES, f"{video},{text}")
        names = [match[1] for match in found if match is not None]
        if unknown := next((name for name in names if name not in codes), None):
            raise malformed(file, number, "actions of the class file", unknown)
        path = index.find(video, split)
        label = joined(codes[name] for name in names)
        rows.append((path or f"{video}.mp4", label, split, path is None, str(file), number))
    return rows
