"""Two runs on the same clips: what differs, by how much, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vidpipe.errors import VidpipeError
from vidpipe.tasks.scores import Array, interval, mean_class_accuracy


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation left: `table` is `metrics.predictions_table`."""

    name: str
    classes: tuple[str, ...]
    table: pd.DataFrame


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


def _paired(a: Evaluated, b: Evaluated) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables in the same order of clips."""
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


def _top1(table: pd.DataFrame) -> Array:
    return np.array([a == b for a, b in zip(table.label, table.predicted)], dtype=np.float64)


def _top5(table: pd.DataFrame) -> Array:
    return np.array([label in top for label, top in zip(table.label, table.top5)], dtype=np.float64)


def difference(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """Rows top1, top5, mean_class_accuracy; columns a, b, difference (b - a) with the bounds low and
    high of a paired 95 % bootstrap, and p (of top1 and top5: McNemar's exact test).

    Raises VidpipeError where classes, clips or labels are not the same.
    """
    from scipy.stats import binomtest

    first, second = _paired(a, b)
    index = {name: i for i, name in enumerate(a.classes)}
    labels = np.array([index[label] for label in first.label], dtype=np.int64)
    rows = []
    hits = [_top1(table) for table in (first, second)]
    for name, (x, y) in (("top1", hits), ("top5", (_top5(first), _top5(second)))):
        low, high = interval(lambda i, lost=y - x: float(lost[i].mean()), len(x))  # type: ignore[misc]
        won, lost = int((y > x).sum()), int((y < x).sum())
        p = binomtest(won, won + lost).pvalue if won + lost else 1.0
        rows.append((name, x.mean(), y.mean(), y.mean() - x.mean(), low, high, p))
    mean, other = (mean_class_accuracy(h, labels) for h in hits)
    low, high = interval(
        lambda i: (
            mean_class_accuracy(hits[1][i], labels[i]) - mean_class_accuracy(hits[0][i], labels[i])
        ),
        len(labels),
    )
    rows.append(("mean_class_accuracy", mean, other, other - mean, low, high, float("nan")))
    columns = ["metric", "a", "b", "difference", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def per_class_difference(a: Evaluated, b: Evaluated) -> pd.DataFrame:
    """Columns class, clips, a, b (top1), difference (b - a): the largest gain first (AIM, Fig. 5)."""
    first, second = _paired(a, b)
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
        hits = _top1(run.table)
        labels = np.array([index[label] for label in run.table.label], dtype=np.int64)
        rows.append(
            (run.name, hits.mean(), _top5(run.table).mean(), mean_class_accuracy(hits, labels))
        )
    table = pd.DataFrame(rows, columns=["run", "top1", "top5", "mean_class_accuracy"])
    mean = table.drop(columns="run").mean()
    return pd.concat([table, pd.DataFrame([{"run": "mean", **mean}])], ignore_index=True)
