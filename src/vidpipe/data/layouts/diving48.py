"""Diving48: lists of {vid_name, label, start_frame, end_frame} and the vocabulary of its 48 dives.

Version 2 corrected the labels, so it is taken where both are there. A class is the four parts of
its entry in the vocabulary joined by underscores; `label` is the entry's index. The videos are cut
already: frames are not used. The test list is the validation split; there is no other.
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
    find_file,
    malformed,
    need_file,
    read_json,
    read_records,
)

EXPECTED = '{"vid_name": ..., "label": index into Diving48_vocab.json}'


def read(root: Path, config: DataConfig) -> Found:
    folders = annotation_folders(root, config, ("annotations", "labels"))
    # Both lists of one version: rows of the two versions would mix old and corrected labels.
    version = "_V2" if find_file(root, folders, ["Diving48_V2_train.json"]) else ""
    if not find_file(root, folders, [f"Diving48{version}_train.json"]):
        need_file(root, folders, ["Diving48_V2_train.json", "Diving48_train.json"], "diving48")
    classes = _classes(need_file(root, folders, ["Diving48_vocab.json"], "diving48"))
    index = VideoIndex(root)
    rows: list[Row] = []
    for part, split in (("train", "train"), ("test", "val")):
        file = need_file(root, folders, [f"Diving48{version}_{part}.json"], "diving48")
        rows += _rows(file, split, classes, index)
    return Found(rows, classes)


def _classes(path: Path) -> tuple[str, ...]:
    entries = read_json(path)
    expected = 'a list such as ["Back", "15som", "05Twis", "FREE"]'
    if not isinstance(entries, list) or len(entries) < 2:
        raise fail(f"data.annotations: {path}: expected a list of classes, each {expected}")
    names: dict[str, None] = {}
    for number, entry in enumerate(entries, 1):
        if not (isinstance(entry, list) and entry and all(isinstance(p, str) for p in entry)):
            raise malformed(path, number, expected, entry)
        if (name := "_".join(entry)) in names:
            raise fail(f"data.annotations: {path}: row {number}: {name!r} is there twice")
        names[name] = None
    return tuple(names)


def _rows(file: Path, split: str, classes: tuple[str, ...], index: VideoIndex) -> list[Row]:
    rows: list[Row] = []
    for number, record in enumerate(read_records(file, EXPECTED), 1):
        name, label = record.get("vid_name"), record.get("label")
        if not (isinstance(name, str) and name) or type(label) is not int:
            raise malformed(file, number, EXPECTED, record)
        if not 0 <= label < len(classes):
            raise fail(
                f"data.annotations: {file}: row {number}: label {str(label)[:20]} of {name!r}; "
                f"expected 0 to {len(classes) - 1}, as in Diving48_vocab.json"
            )
        path = index.find(name)
        rows.append((path or f"{name}.mp4", classes[label], split, path is None, str(file), number))
    return rows
