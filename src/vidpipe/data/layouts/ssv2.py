"""Something-Something V2: lists of {id, label, template, placeholders} and a file of classes.

A class is a template without its brackets: "Putting [something] on [something]" is class
"Putting something on something" of labels.json, which maps names to indices written as text. The
test list has no labels and is not read. Videos are `{id}.webm` or any other suffix.
"""

from __future__ import annotations

from pathlib import Path

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    fail,
    malformed,
    need_file,
    read_json,
    read_records,
)

EXPECTED = '{"id": ..., "template": ...}'


def read(root: Path, config: DataConfig) -> Found:
    folders = annotation_folders(root, config, ("labels", "annotations"))

    def file(name: str) -> Path:
        names = [f"something-something-v2-{name}.json", f"{name}.json"]
        return need_file(root, folders, names, "ssv2")

    classes = _classes(file("labels"))
    files = {"train": file("train"), "val": file("validation")}
    index = VideoIndex(root)
    rows = [row for split, path in files.items() for row in _rows(path, split, index)]
    return Found(rows, classes)


def _classes(path: Path) -> tuple[str, ...]:
    labels = read_json(path)
    expected = '{"name of a class": "its index"} with the indices 0, 1, 2, ...'
    if not isinstance(labels, dict) or len(labels) < 2:
        raise fail(f"data.annotations: {path}: expected {expected}, at least two")
    order: dict[int, str] = {}
    for number, (name, index) in enumerate(labels.items(), 1):
        text = str(index) if isinstance(index, str | int) else ""
        # Not str.isdigit: superscripts are digits, too, and int() refuses thousands of them.
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise malformed(path, number, expected, {name: index})
        order[int(text)] = name
    if sorted(order) != list(range(len(labels))):
        raise fail(f"data.annotations: {path}: expected {expected}; some are missing or twice")
    return tuple(order[i] for i in range(len(order)))


def _rows(file: Path, split: str, index: VideoIndex) -> list[Row]:
    rows: list[Row] = []
    for number, record in enumerate(read_records(file, EXPECTED), 1):
        id_, template = record.get("id"), record.get("template")
        if isinstance(id_, int) and not isinstance(id_, bool) and 0 <= id_ < 10**12:
            id_ = str(id_)
        if not (isinstance(id_, str) and id_ and isinstance(template, str) and template):
            raise malformed(file, number, EXPECTED, record)
        label = template.replace("[", "").replace("]", "")
        path = index.find(id_, split)
        rows.append((path or f"{id_}.webm", label, split, path is None, str(file), number))
    return rows
