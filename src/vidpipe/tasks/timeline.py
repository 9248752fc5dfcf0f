"""Windows of a long video merged into what happens when; temporal mAP and frame accuracy of it.

No torch: windows are anybody's (W, C) probabilities with their times in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vidpipe.tasks.scores import Array, mean_known

TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Stretch(NamedTuple):
    """From `start_s` to `end_s` of a video, `label`; `score` in 0 .. 1, 1 of ground truth."""

    start_s: float
    end_s: float
    label: str
    score: float = 1.0


@dataclass(frozen=True)
class Merging:
    """How windows become stretches.

    Args:
        smoothing_s: windows whose middles lie within this many seconds are averaged; 0: none.
        threshold: least probability; None: 0 of one class at a time, each class's own of several.
        min_length_s: shorter stretches are left out.
    """

    smoothing_s: float = 0.0
    threshold: float | None = None
    min_length_s: float = 0.0


def merge(
    starts: Sequence[float],
    ends: Sequence[float],
    probabilities: Array,
    classes: Sequence[str],
    *,
    thresholds: Sequence[float] | None = None,
    background: str | None = None,
    merging: Merging | None = None,
) -> list[Stretch]:
    """Stretches by start. A window speaks for the time around its middle, half way to its neighbours'.

    Args:
        starts, ends: (W,) of windows that follow each other, seconds.
        probabilities: (W, C).
        thresholds: (C,) where several classes, or none, may be at once; None: the likeliest one.
        background: the class that is no stretch.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
        >>> merge([0, 1, 2], [2, 3, 4], p, ["run", "jump"])
        [Stretch(start_s=0.0, end_s=2.5, label='run', score=0.86), \
Stretch(start_s=2.5, end_s=4.0, label='jump', score=0.7)]
    """
    merging = merging or Merging()
    edges = _edges(np.asarray(starts, float), np.asarray(ends, float))
    middles = (np.asarray(starts, float) + np.asarray(ends, float)) / 2
    p = _smoothed(np.asarray(probabilities, float), middles, merging.smoothing_s)
    if thresholds is None:
        said = np.zeros(p.shape, bool)
        said[np.arange(len(p)), p.argmax(1)] = True
        said &= p >= (merging.threshold or 0.0)
    else:
        said = p >= np.asarray(thresholds if merging.threshold is None else merging.threshold)
    lengths = np.diff(edges)
    found = []
    for c, name in enumerate(classes):
        if name == background:
            continue
        changes = np.flatnonzero(np.diff(np.concatenate([[0], said[:, c].astype(int), [0]])))
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            start, end = float(edges[first]), float(edges[last])
            if end - start >= merging.min_length_s:
                score = float(np.average(p[first:last, c], weights=lengths[first:last]))
                found.append(Stretch(start, end, name, round(score, 6)))
    return sorted(found, key=lambda s: (s.start_s, s.end_s, s.label))


def _edges(starts: Array, ends: Array) -> Array:
    """(W + 1,): where the time that each window speaks for begins and ends."""
    middles = (starts + ends) / 2
    return np.concatenate([starts[:1], (middles[:-1] + middles[1:]) / 2, ends[-1:]])


def _smoothed(p: Array, middles: Array, within_s: float) -> Array:
    if within_s <= 0:
        return p
    low = np.searchsorted(middles, middles - within_s / 2 - 1e-9)
    high = np.searchsorted(middles, middles + within_s / 2 + 1e-9, side="right")
    sums = np.concatenate([np.zeros((1, p.shape[1])), np.cumsum(p, axis=0)])
    return np.asarray((sums[high] - sums[low]) / (high - low)[:, None])


def temporal_map(
    truth: Mapping[str, Sequence[Stretch]],
    found: Mapping[str, Sequence[Stretch]],
    tious: Sequence[float] = TIOUS,
) -> dict[float, dict[str, float]]:
    """Average precision of every class that `truth` has, at each temporal IoU: ActivityNet's rule.

    By falling score, a stretch takes the ground truth of its video and class that it overlaps most and
    that is not taken; below the threshold, or where all are taken, it is wrong. Precision is made
    monotone (VOC 2010). Equal scores count in the order of `found`, the last first, as the official code
    has them by its sort. A class without stretches has 0.

    Args:
        truth, found: stretches of each video.
    """
    classes = sorted({s.label for own in truth.values() for s in own})
    return {tiou: {name: _ap(truth, found, name, tiou) for name in classes} for tiou in tious}


def _ap(
    truth: Mapping[str, Sequence[Stretch]],
    found: Mapping[str, Sequence[Stretch]],
    name: str,
    tiou: float,
) -> float:
    hits, _ = ranked_hits(truth, found, name, tiou)
    total = sum(s.label == name for own in truth.values() for s in own)
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    recall = np.concatenate([[0.0], right / total])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * envelope).sum())


def ranked_hits(
    truth: Mapping[str, Sequence[Stretch]],
    found: Mapping[str, Sequence[Stretch]],
    name: str,
    tiou: float,
) -> tuple[Array, list[str]]:
    """Of each stretch of a class, by falling score: (N,) 1 where it found a ground truth; its video."""
    real = {
        video: np.array([s[:2] for s in own if s.label == name], float).reshape(-1, 2)
        for video, own in truth.items()
    }
    listed = [(video, s) for video, own in found.items() for s in own if s.label == name]
    order = np.argsort([s.score for _, s in listed], kind="stable")[::-1]
    taken = {video: np.zeros(len(spans), bool) for video, spans in real.items()}
    hits = np.zeros(len(listed))
    for place, i in enumerate(order):
        video, stretch = listed[i]
        spans = real.get(video)
        if spans is None or len(spans) == 0:
            continue
        overlap = _iou(stretch, spans)
        for j in np.argsort(overlap, kind="stable")[::-1]:
            if overlap[j] < tiou:
                break
            if not taken[video][j]:
                taken[video][j] = hits[place] = True
                break
    return hits, [listed[i][0] for i in order]


def _iou(stretch: Stretch, spans: Array) -> Array:
    both = np.minimum(stretch.end_s, spans[:, 1]) - np.maximum(stretch.start_s, spans[:, 0])
    both = both.clip(0)
    lengths = spans[:, 1] - spans[:, 0] + stretch.end_s - stretch.start_s
    return np.asarray(both / (lengths - both))


def frame_accuracy(
    truth: Mapping[str, Sequence[Stretch]],
    found: Mapping[str, Sequence[Stretch]],
    frames: Mapping[str, tuple[int, float]],
) -> float:
    """Share of all frames whose labels are exactly those of `truth`, none included.

    Args:
        frames: of each video its frames and their rate.
    """
    right = total = 0
    for video, (count, fps) in frames.items():
        times: Array = (np.arange(count, dtype=np.float64) + 0.5) / fps
        labels = {s.label for own in (truth, found) for s in own.get(video, ())}
        same = np.ones(count, bool)
        for name in labels:
            a, b = (_at(times, own.get(video, ()), name) for own in (truth, found))
            same &= a == b
        right, total = right + int(same.sum()), total + count
    return right / total


def _at(times: Array, stretches: Sequence[Stretch], name: str) -> Array:
    inside = np.zeros(len(times), bool)
    for s in stretches:
        if s.label == name:
            inside |= (times >= s.start_s) & (times < s.end_s)
    return inside


def timeline_metrics(
    truth: Mapping[str, Sequence[Stretch]],
    found: Mapping[str, Sequence[Stretch]],
    frames: Mapping[str, tuple[int, float]],
) -> dict[str, float]:
    """`temporal_map` over TIOUS and at each (`temporal_map_0.5`), and frame_accuracy."""
    each = {
        tiou: mean_known(np.array(list(of_class.values())))
        for tiou, of_class in temporal_map(truth, found).items()
    }
    return {
        "temporal_map": float(np.mean(list(each.values()))),
        **{f"temporal_map_{tiou:g}": value for tiou, value in each.items()},
        "frame_accuracy": frame_accuracy(truth, found, frames),
    }
