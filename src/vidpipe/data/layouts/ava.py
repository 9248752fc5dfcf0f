"""AVA: people in boxes at seconds of long videos, each with any number of actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.boxes import PROPOSAL, BoxRows
from vidpipe.data.config import DataConfig
from vidpipe.data.layouts.ava_files import (
    Boxes,
    Frame,
    inside,
    read_boxes,
    read_excluded,
    read_label_map,
    refuse,
)
from vidpipe.data.layouts.common import (
    Found,
    Row,
    VideoIndex,
    annotation_folders,
    closest,
    fail,
    find_file,
    need_file,
    resolve_inside,
)

VERSIONS = ("v2.2", "v2.1")
LABEL_MAPS = ("action_list.pbtxt", *(f"ava_action_list_{v}.pbtxt" for v in VERSIONS))
EVALUATED = (
    "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
)
"""AVA's label maps of the 60 of 80 actions that count."""
PROPOSALS = ("val_proposals.csv", "val_proposals.parquet")


def read(root: Path, config: DataConfig) -> Found:
    """`train.csv`, `val.csv`, `action_list.pbtxt`, perhaps `*_excluded_timestamps.csv` and
    `val_proposals.csv`, or AVA's own names of them; a video's name is its file's without the suffix.

    Excluded key frames are left out. The classes are those of the label map by rising id.
    """
    folders = annotation_folders(root, config, ("annotations",))
    files = {
        split: need_file(root, folders, _names("{}.csv", "ava_{}_{}.csv", split), "ava")
        for split in ("train", "val")
    }
    evaluated = find_file(root, folders, EVALUATED)
    label_map = find_file(root, folders, LABEL_MAPS) or evaluated
    if label_map is None:
        label_map = need_file(root, folders, LABEL_MAPS, "ava")
    names = read_label_map(label_map)
    ids = np.array(sorted(names), dtype=np.int64)
    counted = set(names if evaluated is None else read_label_map(evaluated))
    if unknown := sorted(counted - set(names)):
        raise fail(f"{evaluated}: id {unknown[0]} is not in {label_map}")
    index, videos, rows = VideoIndex(root), dict[str, int](), list[Row]()
    parts = []
    for split, file in files.items():
        pattern = ("{}_excluded_timestamps.csv", "ava_{}_excluded_timestamps_{}.csv")
        excluded = find_file(root, folders, _names(*pattern, split))
        left_out = frozenset[Frame]() if excluded is None else read_excluded(excluded)
        truth = read_boxes(file)
        where = f"an id of {label_map.name}"
        refuse(file, truth, ~np.isin(truth.action, ids), where, action=True)
        rows += _videos(truth, file, split, index, videos)
        parts.append(_part(truth, file, np.searchsorted(ids, truth.action), videos, left_out))
        if split == "val":
            proposals = _proposals(root, folders, config)
            if proposals is not None:
                parts.append(_proposed(proposals, videos, left_out))
    paths = tuple(row[0] for row in rows)
    video, second, edges, action, score = (np.concatenate(c) for c in zip(*parts, strict=True))
    order = tuple(np.flatnonzero(np.isin(ids, list(counted))).tolist())
    boxes = BoxRows(paths, video, second, edges, action, score, order, config.detection)
    return Found(rows, tuple(names[i] for i in ids.tolist()), boxes=boxes)


Part = tuple[
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.int16],
    NDArray[np.float64],
]
"""Video, second, boxes, action, score of some rows."""


def _names(short: str, own: str, split: str) -> list[str]:
    return [short.format(split), *(own.format(split, version) for version in VERSIONS)]


def _videos(
    truth: Boxes, file: Path, split: str, index: VideoIndex, videos: dict[str, int]
) -> list[Row]:
    """A row a video, in the order in which the file names them; `videos` learns their numbers."""
    rows: list[Row] = []
    seen: set[str] = set()
    first = np.full(len(truth.frames), len(truth), dtype=np.int64)
    np.minimum.at(first, truth.frame, np.arange(len(truth)))
    for (video, _), row in zip(truth.frames, first.tolist(), strict=True):
        if video in seen:
            continue
        seen.add(video)
        if video in videos:
            raise fail(f"{file}: row {row + 1}: {video} is in split train and in val")
        videos[video] = len(videos)
        path = index.find(video, split)
        rows.append((path or f"{video}.mp4", "", split, path is None, str(file), row + 1))
    return rows


def _part(
    rows: Boxes,
    file: Path,
    action: NDArray[np.int64],
    videos: dict[str, int],
    left_out: frozenset[Frame],
) -> Part:
    boxes = inside(file, rows)
    number = np.array([videos[video] for video, _ in rows.frames], dtype=np.int32)
    second = np.array([second for _, second in rows.frames], dtype=np.int64)
    kept = np.array([frame not in left_out for frame in rows.frames], dtype=bool)
    own = np.flatnonzero(kept[rows.frame]) if len(rows) else np.zeros(0, np.int64)
    frame = rows.frame[own]
    return (
        number[frame],
        second[frame],
        boxes[own],
        action[own].astype(np.int16),
        rows.score[own],
    )


def _proposals(root: Path, folders: list[Path], config: DataConfig) -> Path | None:
    given = config.detection.proposals
    if given is None:
        return find_file(root, folders, PROPOSALS)
    path = resolve_inside(root, given)
    if not path.is_file():
        raise fail(f"data.detection.proposals: {path}: no such file")
    return path


def _proposed(file: Path, videos: dict[str, int], left_out: frozenset[Frame]) -> Part:
    rows = read_boxes(file, proposals=True)
    for number, (video, second) in enumerate(rows.frames):
        if video not in videos:
            row = int((rows.frame == number).argmax()) + 1
            near = closest(video, sorted(videos))
            raise fail(f"{file}: row {row}: {video}, second {second}: no such video{near}")
    return _part(rows, file, np.full(len(rows), PROPOSAL), videos, left_out)
