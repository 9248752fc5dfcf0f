"""Frame mAP at IoU 0.5, as AVA's official evaluator counts it.

`get_ava_performance.py` of the ActivityNet challenge, with the PASCAL evaluator of TensorFlow's
object detection API behind it. What it decides by its order of rows (ties) is decided here in the
same way; what it loops over is done by whole arrays.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.layouts.ava_files import (
    Boxes,
    Frame,
    read_boxes,
    read_excluded,
    read_label_map,
)
from vidpipe.data.layouts.common import fail

IOU = 0.5
MAX_DETECTIONS = 50
"""Of a frame, boxes times actions: the official evaluator keeps those of highest score."""
LEAST_SCORE = -10.0
"""The official evaluator drops what does not exceed it."""

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def frame_map(
    groundtruth: str | Path,
    detections: str | Path,
    label_map: str | Path,
    excluded: str | Path | None = None,
) -> dict[str, Any]:
    """Frame mAP at IoU 0.5 of files in AVA's format.

    A detection matches the ground truth of highest IoU; a second match of the same is false. A class
    with ground truth and without detections has AP 0; one without ground truth is left out of the mean.
    Detections in frames without ground truth are false. Boxes of actions that the label map lacks do not
    exist (AVA's has 60 of 80), nor do excluded frames. Of a frame, the 50 detections of highest score
    count.

    Args:
        groundtruth: CSV of `video, second, x1, y1, x2, y2, action id[, person id]`, boxes as fractions.
        detections: CSV of `video, second, x1, y1, x2, y2, action id[, score]`.
        label_map: ids and names of the actions that count, in protobuf's text format.
        excluded: CSV of `video, second`; None: every frame counts.

    Returns:
        `{"map": mean of the APs, "ap": {name: AP, or None without ground truth}}`; the mean of no class
        is nan.

    Raises:
        VidpipeError: with file and row, for a file that is not in this format, and for ground truth with
            an inverted box.

    Source: AVA (Gu et al., CVPR 2018), section 5.1; numbers equal the official code's.
    """
    names = read_label_map(label_map)
    left_out = frozenset[Frame]() if excluded is None else read_excluded(excluded)
    truth = _counted(read_boxes(groundtruth), names, left_out)
    x1, y1, x2, y2 = truth.boxes.T
    if (wrong := (x1 > x2) | (y1 > y2)).any():
        video, second = truth.frames[truth.frame[wrong.argmax()]]
        box = ", ".join(f"{edge:g}" for edge in truth.boxes[wrong.argmax()])
        raise fail(f"{groundtruth}: {video}, second {second}: box {box}; expected x1 < x2, y1 < y2")
    return map_of_rows(truth, _counted(read_boxes(detections), names, left_out), names)


def map_of_rows(truth: Boxes, found: Boxes, names: Mapping[int, str]) -> dict[str, Any]:
    """`frame_map` of rows in memory, all of them of actions in `names`; frames are numbered by their
    first row, as `numbered` does."""
    found, correct = _matched(truth, found)
    ap: dict[str, float | None] = {}
    for action, name in sorted(names.items()):
        own, positives = found.action == action, int((truth.action == action).sum())
        score = average_precision(found.score[own], correct[own], positives) if positives else None
        ap[name] = score
    scored = [score for score in ap.values() if score is not None]
    return {"map": float(np.mean(scored)) if scored else float("nan"), "ap": ap}


def _matched(truth: Boxes, found: Boxes) -> tuple[Boxes, NDArray[np.bool_]]:
    """The detections that count, in the order of the evaluator, and (N,) whether each is the first on a
    ground truth."""
    index, correct = matches(truth, found)
    found = _take(found, index)
    # The precision-recall curve meets a frame's detections by rising score. That decides between equal
    # scores of different frames, together with numpy's argsort, and the official numbers show it.
    rising = np.lexsort((-np.arange(len(found)), _groups(found)))
    return _take(found, rising), correct[rising]


def matches(truth: Boxes, found: Boxes) -> tuple[Index, NDArray[np.bool_]]:
    """Of rows as `map_of_rows` has them: those of `found` that count, in the order in which they are
    matched, and whether each found a ground truth that none before it had found."""
    index = _official_order(found, MAX_DETECTIONS)
    x1, y1, x2, y2 = found.boxes[index].T
    index = index[(x1 < x2) & (y1 < y2) & (found.score[index] > LEAST_SCORE)]
    index = index[_ranked(_take(found, index))]
    return index, _correct(_take(found, index), _take(truth, _official_order(truth, None)))


def average_precision(scores: Array, correct: NDArray[np.bool_], positives: int) -> float:
    """Area under the precision-recall curve, precision made non-increasing (PASCAL VOC 2010).

    Args:
        scores: (N,) of the detections of a class; the order decides between ties, as in numpy's argsort.
        correct: (N,) whether each found a ground truth that none before it had found.
        positives: ground-truth boxes, at least 1.
    """
    correct = correct[np.argsort(scores)[::-1]]
    hits = np.cumsum(correct, dtype=np.float64)
    precision = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    recall = np.concatenate([[0.0], hits / positives, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


def _take(rows: Boxes, index: Index) -> Boxes:
    return replace(
        rows,
        frame=rows.frame[index],
        boxes=rows.boxes[index],
        action=rows.action[index],
        score=rows.score[index],
    )


def _counted(rows: Boxes, names: dict[int, str], excluded: frozenset[Frame]) -> Boxes:
    """Rows of known actions in frames that are not excluded; frames numbered anew by first appearance
    among those rows, as the evaluator meets them."""
    allowed = np.array([frame not in excluded for frame in rows.frames], dtype=bool)
    keep = np.isin(rows.action, list(names))
    if len(rows):
        keep &= allowed[rows.frame]
    return numbered(_take(rows, np.flatnonzero(keep)))


def numbered(rows: Boxes) -> Boxes:
    """The same rows with their frames in order of first appearance, and no others."""
    present, first = np.unique(rows.frame, return_index=True)
    order = np.argsort(first)
    number = np.zeros(len(rows.frames), dtype=np.int64)
    number[present[order]] = np.arange(len(present))
    return replace(rows, frames=[rows.frames[i] for i in present[order]], frame=number[rows.frame])


def _official_order(rows: Boxes, capacity: int | None) -> Index:
    """Rows frame by frame, each by falling score; at most `capacity` a frame.

    The evaluator pushes a frame's rows onto a heap and sorts that by score, so between equal scores the
    heap's layout decides. Only where that matters is the heap built here.
    """
    order = np.lexsort((-rows.score, rows.frame))
    frame, score = rows.frame[order], rows.score[order]
    counts = np.bincount(rows.frame, minlength=len(rows.frames))
    starts = np.cumsum(counts) - counts
    tied = np.zeros(len(rows.frames), dtype=bool)
    tied[frame[1:][(frame[1:] == frame[:-1]) & (score[1:] == score[:-1])]] = True
    if capacity is not None:
        # Cut before the heaps' frames are put in their place: those are never longer.
        kept = np.arange(len(order)) - starts[frame] < capacity
    else:
        kept = np.ones(len(order), dtype=bool)
    for number in np.flatnonzero(tied):
        begin, end = starts[number], starts[number] + counts[number]
        heaped = _heaped(rows, np.sort(order[begin:end]), capacity)
        order[begin : begin + len(heaped)] = heaped
    return order[kept]


def _heaped(rows: Boxes, index: Index, capacity: int | None) -> Index:
    """One frame's rows, given in the file's order, as the evaluator's heap leaves them."""
    heap: list[tuple[float, int, float, float, float, float, int]] = []
    for row in index.tolist():
        x1, y1, x2, y2 = rows.boxes[row].tolist()
        entry = (float(rows.score[row]), int(rows.action[row]), y1, x1, y2, x2, row)
        if capacity is None or len(heap) < capacity:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return np.array([entry[-1] for entry in sorted(heap, key=lambda e: -e[0])], dtype=np.int64)


def _groups(rows: Boxes) -> Index:
    """A number for the frame and the action of each row, comparable between two `Boxes` only with the
    same frames."""
    return rows.frame * (2**31) + rows.action


def _ranked(rows: Boxes) -> Index:
    """Rows frame by frame and action by action, in the order in which the evaluator matches them."""
    key = _groups(rows)
    order = np.lexsort((-rows.score, key))  # stable: ties as they were
    sorted_key, score = key[order], rows.score[order]
    same = (sorted_key[1:] == sorted_key[:-1]) & (score[1:] == score[:-1])
    for tied in np.unique(sorted_key[1:][same]):
        begin, end = np.searchsorted(sorted_key, [tied, tied + 1])
        group = order[begin:end]
        order[begin:end] = group[np.argsort(rows.score[group])[::-1]]
    return order


def _correct(found: Boxes, truth: Boxes) -> NDArray[np.bool_]:
    """(N,) whether each detection is the first, in its order, on the ground truth of highest IoU, and
    that IoU is at least 0.5."""
    numbers = {frame: number for number, frame in enumerate(truth.frames)}
    unknown = len(truth.frames)
    frames = np.array([numbers.get(frame, unknown) for frame in found.frames], dtype=np.int64)
    keys = replace(found, frame=frames[found.frame]) if len(found) else found
    wanted, given = _groups(keys), _groups(truth)
    by_key = np.argsort(given, kind="stable")
    begin = np.searchsorted(given[by_key], wanted, side="left")
    count = np.searchsorted(given[by_key], wanted, side="right") - begin
    correct = np.zeros(len(found), dtype=bool)
    if not count.sum():
        return correct
    # Every pair of a detection and a ground truth of its frame and action.
    detection = np.repeat(np.arange(len(found)), count)
    offset = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    target = by_key[np.repeat(begin, count) + offset]
    overlap = _iou(found.boxes[detection], truth.boxes[target])
    first = np.lexsort((offset, -overlap, detection))
    starts = np.flatnonzero(np.diff(detection[first], prepend=-1))
    best = first[starts]
    best = best[overlap[best] >= IOU]
    _, winner = np.unique(target[best], return_index=True)  # the first occurrence: highest rank
    correct[detection[best[winner]]] = True
    return correct


def _iou(a: Array, b: Array) -> Array:
    """(N,) of N pairs of boxes (N, 4), x1, y1, x2, y2."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    common = np.maximum(height, 0.0) * np.maximum(width, 0.0)
    area_a, area_b = ((c[:, 3] - c[:, 1]) * (c[:, 2] - c[:, 0]) for c in (a, b))
    return common / (area_a + area_b - common)
