"""What videos a data set has, by its layout. Labels, paths and annotation files are untrusted input."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from vidpipe.data.config import DataConfig, TaskName
from vidpipe.data.folds import held_out_groups
from vidpipe.data.group_pattern import is_pattern
from vidpipe.data.groups import path_groups
from vidpipe.data.labels import JOINT, label_sets
from vidpipe.data.layouts import ava, diving48, generic, kinetics, lists, several, spans, ssv2
from vidpipe.data.layouts.common import (
    COLUMNS,
    Found,
    Item,
    Listing,
    Row,
    closest,
    fail,
    leaves_root,
    resolve_inside,
)
from vidpipe.errors import ArgumentError

__all__ = ["Item", "Listing", "list_items", "resolve_inside"]

logger = logging.getLogger(__name__)

LAYOUTS: dict[str, Callable[[Path, DataConfig], Found]] = {
    "folders": generic.folders,
    "table": generic.table,
    "kinetics": kinetics.read,
    "ssv2": ssv2.read,
    "diving48": diving48.read,
    "ucf101": lists.ucf101,
    "hmdb51": lists.hmdb51,
    "ava": ava.read,
    "charades": several.charades,
    "segments": spans.segments,
    "activitynet": spans.activitynet,
}
TASKS_OF: dict[str, tuple[TaskName, ...]] = {
    "table": ("single_label", "multilabel"),
    "folders": ("single_label", "multilabel"),
    "segments": ("single_label", "multilabel"),
    "activitynet": ("single_label", "multilabel"),
    "charades": ("multilabel",),
    "ava": ("detection",),
}
"""The tasks of a layout, where they are others than one label a video."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_NORMAL = re.compile(r"//|(?:^|/)\.(?:/|$)|/$", re.MULTILINE)


def list_items(config: DataConfig) -> Listing:
    """Every video of the data set, sorted by path, and its classes.

    Rows whose file is not on disk stay, so that the manifest says so. Raises VidpipeError, with
    file and row, for a missing folder, file or column, a malformed row, a path outside the root, a
    label outside the class list, a path listed twice, fewer than two classes (of one label a
    video), an empty split, or more absent files than `data.max_missing_fraction`.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ArgumentError("data.root", f": {root}: no such folder")
    layout = config.layout or ("folders" if config.annotations is None else "table")
    tasks = TASKS_OF.get(layout, ("single_label",))
    if config.task not in tasks:
        raise fail(
            f"data.task: {config.task}; layout {layout} is of task {' or '.join(tasks)}; set data.task, "
            "or another layout"
        )
    if config.keep and layout != "table":
        raise fail(f"data.keep: only for layout table, not {layout}")
    column = config.group is not None and not is_pattern(config.group)
    if column and layout != "table":
        raise fail(
            f"data.group: {config.group}: only layout table has columns, not {layout}; give a "
            "pattern on the path whose {braces} mark the group, such as */{*}_*"
        )
    found = LAYOUTS[layout](root, config.model_copy(update={"layout": layout}))
    if not found.rows:
        raise fail(f"data.root: {root}: no videos found")
    _check_text(found.rows)
    if found.groups and not _is_printable("".join(found.groups)):
        bad = next(group for group in found.groups if not _is_printable(group))
        raise fail(f"data.group: {config.group}: {bad!a} is not printable UTF-8 text")
    rows = pd.DataFrame.from_records(found.rows, columns=list(COLUMNS))
    rows["start_s"], rows["end_s"] = zip(*(found.spans or [(0.0, 0.0)] * len(rows)), strict=True)
    _check_paths(rows, root, once=found.spans is None)
    if config.background is not None and found.spans is None:
        raise fail(f"data.background: layout {layout} has no spans; set it to null")
    rows["group"] = _groups(rows, config, found.groups)
    if found.boxes is None:
        classes = _classes(rows, config, found.classes, root)
    elif config.classes is not None:
        raise fail(
            "data.classes: of task detection, the label map names the classes; set it to null"
        )
    else:
        classes = found.classes or ()
    if found.spans is not None and config.background is not None and config.task == "single_label":
        if config.background in classes:
            raise fail(f"data.background: {config.background!r} is the label of spans, too")
        classes = (*classes, config.background)
    rows = _with_splits(rows, config, whole_files=found.spans is not None)
    rows = rows.sort_values(["path", "start_s"], ignore_index=True, kind="stable")
    for split in ("train", "val"):
        if not (rows.split == split).any():
            raise fail(f"data.root: {root}: no video in split {split!r}")
    _check_missing(rows, config, root)
    names = ["path", "label", "split", "group"]
    if found.spans is not None:
        rows["where"] = [_where(rows, i) for i in range(len(rows))]
        names += ["start_s", "end_s", "where"]
    items = [Item(*row) for row in zip(*(rows[name].tolist() for name in names), strict=True)]
    return Listing(items, classes, found.boxes, found.spans is not None)


def _place(file: str, row: int) -> str:
    return f"{file}: row {row}" if file else "data.root"


def _where(rows: pd.DataFrame, position: int) -> str:
    return _place(rows.file.iloc[position], rows.row.iloc[position])


def _check_text(rows: list[Row]) -> None:
    """Refuse what no manifest can hold: half a surrogate pair (from JSON, or a file name that is not
    UTF-8) and control characters."""
    # All at once: one value after the other costs ten times as much.
    if _is_printable("".join(path + label for path, label, *_ in rows)):
        return
    for path, label, _, _, file, row in rows:
        for text in (path, label):
            if not _is_printable(text):
                raise fail(f"{_place(file, row)}: {text!a} is not printable UTF-8 text")


def _is_printable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return _CONTROL.search(text) is None


def _check_paths(rows: pd.DataFrame, root: Path, once: bool) -> None:
    """Normalise `rows.path` in place; refuse those outside the root and, with `once`, those listed
    twice."""
    paths = rows.path.tolist()
    lines = "\n".join(paths)  # no path has a line feed: _check_text
    if leaves_root(lines) or _NOT_NORMAL.search(lines):
        for i, path in enumerate(paths):
            if leaves_root(path):
                raise fail(f"{_where(rows, i)}: path {path!r} leaves data.root {root}")
            if _NOT_NORMAL.search(path):
                paths[i] = posixpath.normpath(path)
        rows["path"] = paths
    if once and (again := rows.path.duplicated()).any():
        second = int(again.to_numpy().argmax())
        first = paths.index(paths[second])
        raise fail(
            f"{_where(rows, second)}: {paths[second]} is listed more than once; "
            f"first at {_where(rows, first)}"
        )


def _classes(
    rows: pd.DataFrame, config: DataConfig, own: tuple[str, ...] | None, root: Path
) -> tuple[str, ...]:
    many = config.task == "multilabel"
    labels = sorted(
        {name for own in label_sets(rows.label.unique().tolist(), many) for name in own}
    )
    if own is not None and len(own) < 2:
        labels, own = list(own) or labels, None
    classes = own if config.classes is None else config.classes
    if classes is not None:
        known = set(classes)
        if unknown := [label for label in labels if label not in known]:
            sets = label_sets(rows.label.tolist(), many)
            at = next(i for i, names in enumerate(sets) if unknown[0] in names)
            place = "data.classes" if config.classes is not None else _where(rows, at)
            raise fail(
                f"{place}: label {unknown[0]!r} of {rows.path.iloc[at]} is not in the list"
                f"{closest(unknown[0], classes)}"
            )
        if many and (bad := next((name for name in classes if JOINT in name), None)):
            raise fail(f"data.classes: {bad!r}: a class of several cannot have {JOINT} in its name")
        return classes
    if many and not labels:
        raise fail(f"data.root: {root}: no video has a label")
    if len(labels) < 2 and not many:
        raise fail(
            f"data.root: {root}: only one class ({labels[0]!r}); a classifier needs at least two"
        )
    return tuple(labels)


def _groups(rows: pd.DataFrame, config: DataConfig, column: list[str] | None) -> list[str]:
    if config.group is None:
        return [""] * len(rows)
    return path_groups(rows.path.tolist(), config.group) if column is None else column


def _with_splits(rows: pd.DataFrame, config: DataConfig, whole_files: bool) -> pd.DataFrame:
    """Only `train` and `val` are left. Test serves as val where there is no val, else not at all.

    Where there is no split, `val_fraction` of each class by hash: adding videos moves no other. With
    `data.group`, whole groups that have together about as many.
    """
    if not (rows.split == "").any():
        test = rows.split == "test"
        if (rows.split == "val").any():
            if test.any():
                logger.info("%d videos of the test split are not used", test.sum())
            return rows[~test]
        return rows.assign(split=rows.split.mask(test, "val"))
    if whole_files or config.group is not None or config.task == "multilabel":
        return rows.assign(split=_split_by_group(rows, config))
    held_out: set[str] = set()
    for _, group in rows.groupby("label", sort=False):
        paths = sorted(
            group.path, key=lambda p: hashlib.sha256(f"{config.seed} {p}".encode()).digest()
        )
        held_out.update(paths[: max(1, round(config.val_fraction * len(paths)))])
    return rows.assign(split=["val" if path in held_out else "train" for path in rows.path])


def _split_by_group(rows: pd.DataFrame, config: DataConfig) -> list[str]:
    groups = (rows.path if config.group is None else rows.group).tolist()
    # A row for each label of a video, and one for none of them: no class shall lose all of its videos.
    sets = [own or ("",) for own in label_sets(rows.label.tolist(), config.task == "multilabel")]
    labels = [name for own in sets for name in own]
    of_labels = [group for group, own in zip(groups, sets, strict=True) for _ in own]
    held_out = held_out_groups(of_labels, labels, config.val_fraction, config.seed)
    if not held_out:
        raise fail(
            f"data.group: {config.group}: none of {len(set(groups))} groups can be held out, or a class "
            "would lose all of its videos; set it to something finer, or name the split of each video"
        )
    only = set(labels) - {label for group, label in zip(of_labels, labels) if group in held_out}
    if only:
        logger.warning(
            "%d classes are in a single group, or share theirs, and so in no validation clip: %s%s",
            len(only),
            ", ".join(sorted(only)[:10]),
            ", ..." if len(only) > 10 else "",
        )
    return ["val" if group in held_out else "train" for group in groups]


def _check_missing(rows: pd.DataFrame, config: DataConfig, root: Path) -> None:
    missing = rows.path[rows.missing.astype(bool)]
    if len(missing):
        logger.warning("%d of %d listed videos are not below %s", len(missing), len(rows), root)
    if len(missing) > config.max_missing_fraction * len(rows):
        raise fail(
            f"data.root: {root}: {len(missing)} of {len(rows)} listed videos are missing (first "
            f"{', '.join(missing[:3])}), more than data.max_missing_fraction "
            f"{config.max_missing_fraction:g}; check data.root, fetch them, or raise the fraction"
        )
