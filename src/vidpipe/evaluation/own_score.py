"""The number that the models of a task stand or fall by, and what one of two has more of it: a paired
bootstrap over groups, since clips of one person, key frames of one video and spans of one file are no
independent samples. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd

from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import (
    Evaluated,
    hits_of,
    paired,
    ranked_of,
    require_same_classes,
    require_same_task,
)
from vidpipe.tasks.scores import RESAMPLES, Array, Indices, mean_known

if TYPE_CHECKING:
    from vidpipe.study.ranked import RankedOutcomes

Score: TypeAlias = Callable[[Array], float]
"""(G,) how often each group counts -> the score; NaN where no class of these groups has a sample."""
Scores: TypeAlias = Callable[[Array], tuple[float, float]]
"""The same for two models: the scores of `a` and of `b`."""


@dataclass(frozen=True)
class Difference:
    """`b` against `a`, as fractions; `values` (R,) are b - a of groups drawn with replacement."""

    name: str
    a: float
    b: float
    values: Array
    groups: int
    samples: str
    """How many of what were compared."""


def own_difference(a: Evaluated, b: Evaluated, resamples: int = RESAMPLES) -> Difference:
    """By the task's own score: top-1 of one label a clip; mAP of several; temporal mAP where videos were
    looked through for stretches; frame mAP of people in boxes.

    The group of a sample is that of `data.group` where it was set, else the file before the `@` of its
    id, else the sample alone.

    Raises VidpipeError where tasks, classes, samples or labels are not the same.
    """
    require_same_task(a.name, a.task, b.name, b.task)
    require_same_classes(a.name, a.classes, b.name, b.classes)
    group_of = _group_of(a.table)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(group_of.values()))}
    group = {sample: numbers[name] for sample, name in group_of.items()}
    if a.task == "detection":
        name, samples = "frame mAP", f"{len(group)} key frames"
        scores = _of_boxes(a, b, group)
    elif a.timeline is not None and b.timeline is not None:
        name = "temporal mAP"
        scores, files = _of_timelines(a, b, group)
        samples = f"{files} files"
    else:
        first, second = paired(a, b)
        of_clip = np.array([group[clip] for clip in first.index], dtype=np.int64)
        name, samples = ("mAP" if a.several else "top-1"), f"{len(first)} clips"
        make = _of_several if a.several else _of_clips
        old, new = (make(table, a.classes, of_clip) for table in (first, second))
        scores = _each(old, new)
    count = len(numbers)
    rng = np.random.default_rng(0)
    values = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        one, other = scores(weights)
        values[i] = other - one
    return Difference(name, *scores(np.ones(count)), values, count, samples)


def own_row(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """The single row, in the columns of `compare.difference`, of stretches or of boxes.

    The interval is of groups; there is no p.

    Raises VidpipeError as `own_difference` does.
    """
    from vidpipe.study.statistics import bounds

    found = own_difference(a, b)
    low, high = bounds(found.values, found.groups)
    numbers = {
        "a": found.a,
        "b": found.b,
        "difference": found.b - found.a,
        "low": low,
        "high": high,
    }
    return pd.DataFrame([{"metric": found.name, **numbers, "p": float("nan")}])


def box_differences(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """As `compare.per_class_difference`, of people in boxes: columns class, boxes, a, b (average
    precision) and difference."""
    found = _boxes(a, b)
    boxes = found.labels.sum(0).astype(int)
    columns = dict(zip(("a", "b"), found.class_aps(), strict=True))
    table = pd.DataFrame({"class": found.classes, "boxes": boxes, **columns})[boxes > 0]
    table["difference"] = table.b - table.a
    return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def _group_of(table: pd.DataFrame) -> dict[str, str]:
    """Sample -> group."""
    ids = table.id.astype(str)
    names = table["group"].astype(str) if "group" in table else ids.map(_file_of)
    return dict(zip(ids, names, strict=True))


def _file_of(sample: str) -> str:
    return sample.rpartition("@")[0] or sample


def _of_clips(table: pd.DataFrame, classes: Sequence[str], group: Indices) -> Score:
    hits = hits_of(table)

    def score(weights: Array) -> float:
        return float(np.average(hits, weights=weights[group]))

    return score


def _of_several(table: pd.DataFrame, classes: Sequence[str], group: Indices) -> Score:
    ranked = ranked_of(table, classes)
    return lambda weights: mean_known(ranked(weights[group]))


def _each(old: Score, new: Score) -> Scores:
    return lambda weights: (old(weights), new(weights))


# -- stretches: what is found, and which of it is right ----------------------------------------------


@dataclass(frozen=True)
class RankedHits:
    """What was found of one class, by falling score; a group that counts twice is there twice.

    Args:
        right: (N,) whether each is the first to find a ground truth.
        group: (N,) of each.
        positives: (G,) ground truths of each group.
    """

    right: Array
    group: Indices
    positives: Array

    def __call__(self, weights: Array) -> float:
        """Average precision, precision made monotone (VOC 2010); NaN without ground truth."""
        total = float(weights @ self.positives)
        if total == 0:
            return float("nan")
        own = weights[self.group]
        found, seen = np.cumsum(own * self.right), np.cumsum(own)
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float((np.diff(found, prepend=0.0) * envelope).sum() / total)


def _mean(ranked: Sequence[RankedHits]) -> Score:
    return lambda weights: mean_known(np.array([each(weights) for each in ranked]))


def _of_timelines(a: Evaluated, b: Evaluated, group: Mapping[str, int]) -> tuple[Scores, int]:
    """As `tasks.timeline.temporal_map`: the mean over temporal IoUs of the mean over classes."""
    from vidpipe.tasks.timeline import TIOUS, Stretch, ranked_hits

    of_file = {_file_of(sample): number for sample, number in group.items()}

    def stretches(table: pd.DataFrame, truth: bool) -> dict[str, list[Stretch]]:
        found: dict[str, list[Stretch]] = {file: [] for file in of_file}
        own = table[table.truth == truth]
        columns = (own[name].tolist() for name in ("file", *Stretch._fields))
        for file, *values in zip(*columns, strict=True):
            found[file].append(Stretch(*values))
        return found

    tables = [table for table in (a.timeline, b.timeline) if table is not None]
    if any(set(table.file) - of_file.keys() for table in tables) or not (
        truth := stretches(tables[0], True)
    ) == stretches(tables[1], True):
        raise VidpipeError(
            f"{a.name} and {b.name} were evaluated on files with other spans; evaluate both on the "
            "same data"
        )
    classes = sorted({s.label for own in truth.values() for s in own})

    def ranked(found: Mapping[str, Sequence[Stretch]], tiou: float) -> Iterator[RankedHits]:
        for name in classes:
            right, files = ranked_hits(truth, found, name, tiou)
            positives = np.zeros(max(group.values()) + 1)
            for file, own in truth.items():
                positives[of_file[file]] += sum(s.label == name for s in own)
            yield RankedHits(right, np.array([of_file[f] for f in files], np.int64), positives)

    def score(table: pd.DataFrame) -> Score:
        found = stretches(table, False)
        means = [_mean(list(ranked(found, tiou))) for tiou in TIOUS]
        return lambda weights: float(np.mean([mean(weights) for mean in means]))

    return _each(score(tables[0]), score(tables[1])), len(of_file)


# -- boxes --------------------------------------------------------------------------------------------


def _of_boxes(a: Evaluated, b: Evaluated, group: Mapping[str, int]) -> Scores:
    """As AVA's evaluation, by the proposals where there are any, of the classes that it counted."""
    found = _boxes(a, b)
    of_frame = np.array([group[name] for name in sorted(group)], dtype=np.int64)

    def scores(weights: Array) -> tuple[float, float]:
        one, other = found.measure("map", np.ones(1), weights[of_frame])
        return float(one), float(other)

    return scores


def _boxes(a: Evaluated, b: Evaluated) -> RankedOutcomes:
    """Both as a study's rows; key frames by their names. Raises VidpipeError where boxes differ."""
    from vidpipe.study.ranked_boxes import outcomes_of_boxes

    place = ["id", "x1", "y1", "x2", "y2", "truth", "label"]
    if not a.table[place].equals(b.table[place]):
        raise VidpipeError(
            f"{a.name} and {b.name} were evaluated on other boxes; evaluate both on the same key frames "
            "with the same proposals"
        )
    tables = (
        run.table[[*place, "probabilities"]].assign(method=m) for m, run in (("a", a), ("b", b))
    )
    both = pd.concat(tables, ignore_index=True).assign(seed=0, fold=0, group="")
    counted = [i for i, name in enumerate(a.classes) if a.scored is None or name in a.scored]
    return outcomes_of_boxes(both, a.classes, ["a", "b"], counted)
