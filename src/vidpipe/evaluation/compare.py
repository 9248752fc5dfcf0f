"""Two runs on the same clips: what differs, by how much, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vidpipe.data.labels import targets
from vidpipe.errors import VidpipeError
from vidpipe.tasks.scores import (
    Array,
    Indices,
    RankedScores,
    interval,
    mean_class_accuracy,
    mean_known,
)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left: `table` is `metrics.predictions_table`."""

    name: str
    classes: tuple[str, ...]
    table: pd.DataFrame
    task: str = "single_label"
    timeline: pd.DataFrame | None = None
    """Of videos looked through for stretches: columns file, start_s, end_s, label, score, truth."""
    scored: tuple[str, ...] | None = None
    """Of people in boxes: the classes that its metric counted."""

    @property
    def several(self) -> bool:
        """Whether a clip may have several labels."""
        return self.task == "multilabel"


def require_same_classes(
    one: str, classes: Sequence[str], other: str, others: Sequence[str]
) -> None:
    """Raises VidpipeError, naming both sides, where two class lists differ."""
    if tuple(classes) == tuple(others):
        return
    both = zip([*classes, None], [*others, None])
    index, (a, b) = next((i, pair) for i, pair in enumerate(both) if pair[0] != pair[1])
    raise VidpipeError(
        f"{one} has {len(classes)} classes and {other} has {len(others)}; the first that differ are "
        f"{a!r} and {b!r} at {index}; both must have the same list in the same order"
    )


def require_same_task(one: str, task: str, other: str, others: str) -> None:
    """Raises VidpipeError, naming both sides, where a clip has one label there and several here."""
    if task != others:
        raise VidpipeError(
            f"{one} is for data.task {task} and {other} for {others}; both must be for the same task"
        )


def paired(a: Evaluated, b: Evaluated) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in the same order of clips."""
    require_same_task(a.name, a.task, b.name, b.task)
    if a.task == "detection":
        raise VidpipeError(
            f"{a.name}: its rows are boxes, not clips; own_score.own_row compares them"
        )
    require_same_classes(a.name, a.classes, b.name, b.classes)
    first, second = a.table.set_index("id"), b.table.set_index("id")
    if only := sorted(set(first.index) ^ set(second.index)):
        raise VidpipeError(
            f"{a.name} was evaluated on {len(first)} clips and {b.name} on {len(second)}; "
            f"{only[0]!r} is only in one of them; evaluate both on the same split"
        )
    second = second.loc[first.index]
    if wrong := [i for i in first.index if first.label[i] != second.label[i]]:
        raise VidpipeError(
            f"{wrong[0]}: {a.name} has label {first.label[wrong[0]]!r}, {b.name} "
            f"{second.label[wrong[0]]!r}; they were evaluated on different data"
        )
    return first, second


def hits_of(table: pd.DataFrame) -> Array:
    """(N,) 1 where the label is the predicted one."""
    return np.array([a == b for a, b in zip(table.label, table.predicted)], dtype=np.float64)


def _top5(table: pd.DataFrame) -> Array:
    return np.array([label in top for label, top in zip(table.label, table.top5)], dtype=np.float64)


def difference(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """Rows top1, top5, mean_class_accuracy; of several labels a clip map, subset_accuracy. Columns a,
    b, difference (b - a) with the bounds low and high of a paired 95 % bootstrap, and p (of shares of
    clips: McNemar's exact test).

    Raises VidpipeError where classes, clips or labels are not the same.
    """
    first, second = paired(a, b)
    columns = ["metric", "a", "b", "difference", "low", "high", "p"]
    if a.several:
        ranked = [ranked_of(table, a.classes) for table in (first, second)]
        both = [mean_known(each()) for each in ranked]

        def gained(i: Indices) -> float:
            weights = np.bincount(i, minlength=len(first)).astype(np.float64)
            return mean_known(ranked[1](weights)) - mean_known(ranked[0](weights))

        low, high = interval(gained, len(first))
        row = ("map", *both, both[1] - both[0], low, high, float("nan"))
        shares = _share("subset_accuracy", *(hits_of(table) for table in (first, second)))
        return pd.DataFrame([row, shares], columns=columns)
    index = {name: i for i, name in enumerate(a.classes)}
    labels = np.array([index[label] for label in first.label], dtype=np.int64)
    rows = []
    hits = [hits_of(table) for table in (first, second)]
    for name, (x, y) in (("top1", hits), ("top5", (_top5(first), _top5(second)))):
        rows.append(_share(name, x, y))
    mean, other = (mean_class_accuracy(h, labels) for h in hits)
    low, high = interval(
        lambda i: (
            mean_class_accuracy(hits[1][i], labels[i]) - mean_class_accuracy(hits[0][i], labels[i])
        ),
        len(labels),
    )
    rows.append(("mean_class_accuracy", mean, other, other - mean, low, high, float("nan")))
    return pd.DataFrame(rows, columns=columns)


def _share(name: str, x: Array, y: Array) -> tuple[Any, ...]:
    """A row of `difference` for what is 1 or 0 of each clip."""
    from scipy.stats import binomtest

    low, high = interval(lambda i: float((y - x)[i].mean()), len(x))
    won, lost = int((y > x).sum()), int((y < x).sum())
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return name, x.mean(), y.mean(), y.mean() - x.mean(), low, high, p


def ranked_of(table: pd.DataFrame, classes: Sequence[str]) -> RankedScores:
    """What average precision is made of, of several labels a clip."""
    labels = targets(table.label.tolist(), classes, several=True)
    return RankedScores(np.stack(table.probabilities.tolist()).astype(np.float64), labels)


def per_class_difference(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """Columns class, clips, a, b (top1; of several labels AP), difference (b - a): the largest gain
    first (AIM, Fig. 5)."""
    first, second = paired(a, b)
    if a.several:
        clips = targets(first.label.tolist(), a.classes, several=True).sum(0, dtype=np.int64)
        aps = {side: ranked_of(t, a.classes)() for side, t in (("a", first), ("b", second))}
        table = pd.DataFrame({"class": list(a.classes), "clips": clips, **aps})[clips > 0]
        table["difference"] = table.b - table.a
        return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)
    both = pd.DataFrame(
        {
            "class": first.label,
            "a": first.predicted == first.label,
            "b": second.predicted == second.label,
        }
    )
    table = both.groupby("class").agg(clips=("a", "size"), a=("a", "mean"), b=("b", "mean"))
    table["difference"] = table.b - table.a
    return table.sort_values("difference", ascending=False, kind="stable").reset_index()


def mean_of_splits(runs: Sequence[Evaluated]) -> pd.DataFrame:
    """UCF101's and HMDB51's protocol: top1, top5, mean_class_accuracy of each split, and their mean.

    One row a run and a last one `mean`. Raises VidpipeError where classes differ, or where two runs
    were evaluated on the same clips.
    """
    for run in runs:
        if run.task != "single_label":
            raise VidpipeError(f"{run.name}: data.task {run.task}; expected top-1 of splits")
    for run in runs[1:]:
        require_same_classes(runs[0].name, runs[0].classes, run.name, run.classes)
    seen: dict[frozenset[str], str] = {}
    rows = []
    for run in runs:
        ids = frozenset(run.table.id)
        if ids in seen:
            raise VidpipeError(f"{seen[ids]} and {run.name} were evaluated on the same clips")
        seen[ids] = run.name
        index = {name: i for i, name in enumerate(run.classes)}
        hits = hits_of(run.table)
        labels = np.array([index[label] for label in run.table.label], dtype=np.int64)
        rows.append(
            (run.name, hits.mean(), _top5(run.table).mean(), mean_class_accuracy(hits, labels))
        )
    table = pd.DataFrame(rows, columns=["run", "top1", "top5", "mean_class_accuracy"])
    mean = table.drop(columns="run").mean()
    return pd.concat([table, pd.DataFrame([{"run": "mean", **mean}])], ignore_index=True)
