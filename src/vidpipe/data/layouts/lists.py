"""UCF101 and HMDB51: three official splits as text files, `data.split_number` picks one.

Both have train and test videos only: test is the validation split.
"""

from __future__ import annotations

from pathlib import Path

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    closest,
    fail,
    malformed,
    need_file,
    read_lines,
    resolve_inside,
    stem,
)

UCF_FOLDERS = ("ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask", "annotations", "splits")
HMDB_FOLDERS = (
    "testTrainMulti_7030_splits",
    "test_train_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "annotations",
    "splits",
)


def ucf101(root: Path, config: DataConfig) -> Found:
    """classInd.txt (`1 ApplyEyeMakeup`), trainlist0N.txt (`Class/name.avi 1`), testlist0N.txt."""
    folders = annotation_folders(root, config, UCF_FOLDERS)
    numbers = _ucf_classes(need_file(root, folders, ["classInd.txt"], "ucf101"))
    index = VideoIndex(root)
    rows: list[Row] = []
    for name, split in (("trainlist", "train"), ("testlist", "val")):
        file = need_file(root, folders, [f"{name}{config.split_number:02d}.txt"], "ucf101")
        rows += _ucf_rows(file, split, numbers, index)
    return Found(rows, tuple(numbers))


def _ucf_classes(file: Path) -> dict[str, int]:
    """Name -> number from 1, in the order of the numbers."""
    numbers: dict[str, int] = {}
    seen: set[int] = set()
    for row, line in read_lines(file):
        number, _, name = line.partition(" ")
        name = name.strip()
        if not (number.isascii() and number.isdecimal() and len(number) < 6 and name):
            raise malformed(file, row, "a number and a name, such as 1 ApplyEyeMakeup", line)
        if name in numbers or int(number) in seen:
            raise fail(f"data.annotations: {file}: row {row}: {line!r} is there twice")
        numbers[name] = int(number)
        seen.add(int(number))
    if len(numbers) < 2:
        raise fail(f"data.annotations: {file}: expected at least two classes")
    return dict(sorted(numbers.items(), key=lambda pair: pair[1]))


def _ucf_rows(file: Path, split: str, numbers: dict[str, int], index: VideoIndex) -> list[Row]:
    rows: list[Row] = []
    for row, line in read_lines(file):
        path, _, number = line.rpartition(" ") if split == "train" else (line, "", "")
        label, slash, name = path.partition("/")
        if not (slash and name) or (split == "train" and not number.strip()):
            expected = "Class/name.avi" + (" and the class's number" if split == "train" else "")
            raise malformed(file, row, expected, line)
        if label not in numbers:
            raise fail(
                f"data.annotations: {file}: row {row}: label {label!r} is not in classInd.txt"
                f"{closest(label, list(numbers))}"
            )
        if number and number.strip() != str(numbers[label]):
            raise malformed(file, row, f"number {numbers[label]} for {label}", line)
        found = index.find(stem(name), label)
        rows.append((found or path, label, split, found is None, str(file), row))
    return rows


def hmdb51(root: Path, config: DataConfig) -> Found:
    """CLASS_test_splitN.txt, a line a video: `name.avi 1` (1 train, 2 test, 0 not in this split)."""
    folders = annotation_folders(root, config, HMDB_FOLDERS)
    ending = f"_test_split{config.split_number}.txt"
    for folder in folders:
        files = sorted(
            f for f in folder.iterdir() if f.name.removesuffix(ending) not in ("", f.name)
        )
        if files:
            break
    else:
        need_file(root, folders, [f"CLASS{ending}"], "hmdb51")
    index = VideoIndex(root)
    rows: list[Row] = []
    for file in files:
        label = file.name.removesuffix(ending)
        for row, line in read_lines(resolve_inside(root, str(file.absolute()))):
            name, _, use = line.rpartition(" ")
            if use not in ("0", "1", "2") or not name.strip():
                raise malformed(file, row, "name.avi and 1 (train), 2 (test) or 0 (neither)", line)
            if use == "0":
                continue
            name, split = name.strip(), "train" if use == "1" else "val"
            found = index.find(stem(name), label)
            rows.append((found or f"{label}/{name}", label, split, found is None, str(file), row))
    return Found(rows, tuple(file.name.removesuffix(ending) for file in files))
