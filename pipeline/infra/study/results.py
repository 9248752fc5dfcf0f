"""The tables of a study, of what its cells left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.infra.study.cell import PREDICTIONS, Result
from pipeline.infra.study.plan import Cell, Plan
from pipeline.infra.study.runner import NONE, Outcome
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.evaluate import ORDERS
from vidpipe.study.outcomes import COLUMNS, Outcomes
from vidpipe.study.ranked import RankedOutcomes
from vidpipe.study.ranked_boxes import outcomes_of_boxes
from vidpipe.study.recommend import fell_apart, recommendation, undertrained
from vidpipe.study.statistics import (
    AnyOutcomes,
    accuracies,
    against,
    best_of,
    score,
    warnings,
)
from vidpipe.training.metrics import decisive
from vidpipe.viz.comparison import MAP, TOP1, Score

CURVE_RESAMPLES = 500


SCORES = {score.column: score for score in (TOP1, MAP)}


@dataclass(frozen=True)
class Tables:
    """Accuracies are fractions; costs are in 1e9 multiply-accumulates, parameters in millions."""

    score: Score
    """What rows are compared by: that of the task."""
    cells: pd.DataFrame
    """One row a training."""
    predictions: pd.DataFrame
    """One row a tested clip, at the largest fraction; `outcomes_of` reads it."""
    accuracy: pd.DataFrame
    """One row a method, with intervals and costs."""
    best: pd.DataFrame
    """`statistics.against` the best."""
    reference: pd.DataFrame
    """`statistics.against` the reference."""
    curves: pd.DataFrame
    """Accuracy by fraction of the training groups."""
    classes: pd.DataFrame
    """Top-1, or average precision, of each class (index) under each row (columns)."""
    choices: pd.DataFrame
    """One row a choice: row, fold, fraction, trial, settings, validation accuracy."""
    hardest: pd.DataFrame
    """Clips by the share of all predictions that are right, the fewest first."""
    orders: pd.DataFrame
    """The score of the middle view by order of its frames, where it was measured."""
    warnings: list[str]
    sentences: list[str]
    """The recommendation."""

    @property
    def validated(self) -> str:
        """The column of `cells` and `choices` with the score in validation."""
        return decisive(self.score.column)


BOX = ("x1", "y1", "x2", "y2", "truth")
"""Columns of predictions of task detection, a row a box."""


def outcomes_of(
    table: pd.DataFrame,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
    counted: Sequence[int] | None = None,
) -> AnyOutcomes:
    """What `Tables.predictions` of methods `names` says, by the score of its task."""
    if "truth" in table:
        return outcomes_of_boxes(table, classes, names, counted)
    if "probabilities" in table:
        return RankedOutcomes.of(table, classes, names)
    return Outcomes.of(table, names)


def make_tables(plan: Plan, outcome: Outcome) -> Tables:
    """Raises VidpipeError where no cell came to an end."""
    names = [row.row.name for row in plan.rows]
    everything = _predictions(plan, outcome)
    most = max(plan.params.study.fractions)
    whole = everything[everything.fraction == most].drop(columns="fraction").reset_index(drop=True)
    own, what = SCORES[plan.task.score], (plan.classes, names, plan.counted)
    found = outcomes_of(whole, *what)
    if not len(found.labels):
        cells = _cells(plan, outcome)
        failed = cells[cells.state == "failed"].iloc[0]
        raise VidpipeError(
            f"study {plan.params.study.name}: no training came to an end; the first, {failed.method}: "
            f"{failed.error}"
        )
    accuracy = accuracies(found).merge(_costs(plan), on="method")
    accuracy["failed"] = [_failed(plan, outcome, name) for name in accuracy.method]
    best = against(found, best_of(accuracy, own.column), chosen=True)
    wanted = plan.params.study.reference
    first = wanted if wanted in names else names[0]
    reference = against(found, first, chosen=False)
    orders, choices = _orders(plan, whole, names), _choices(plan, outcome)
    cells = _cells(plan, outcome)
    said = warnings(found) + undertrained(choices, first, decisive(own.column)) + fell_apart(cells)
    return Tables(
        score=own,
        cells=cells,
        predictions=whole,
        accuracy=accuracy,
        best=best,
        reference=reference,
        curves=_curves(plan, everything, names),
        classes=_classes(whole, names, found),
        choices=choices,
        hardest=_hardest(whole),
        orders=orders,
        warnings=said,
        sentences=recommendation(accuracy, best, reference, orders, found.num_groups, own.column),
    )


def _predictions(plan: Plan, outcome: Outcome) -> pd.DataFrame:
    """COLUMNS, fold, fraction, label_probability, and NAME_predicted of each order of time; of a task
    with mAP also probabilities and NAME_probabilities."""
    group = dict(zip(plan.clips.ids, plan.clips.groups, strict=True))
    parts = []
    for cell, result in outcome.finals:
        if result.state == "failed":
            continue
        table = pd.read_parquet(cell.folder(plan.workspace) / PREDICTIONS)
        own = table[["id", "label", "predicted", *(n for n in BOX if n in table)]].copy()
        for name in ORDERS:
            if f"{name}_predicted" in table:
                own[f"{name}_predicted"] = table[f"{name}_predicted"]
        for name in ("probabilities", *(f"{order}_probabilities" for order in ORDERS)):
            if name in table:  # as fp64 in cells that were taken over
                own[name] = pd.Series([np.asarray(row, np.float32) for row in table[name]])
        own["label_probability"] = table.label_probability
        own["method"], own["seed"] = cell.row, cell.seed
        own["fold"], own["fraction"] = cell.fold, cell.fraction
        boxes = "truth" in own  # whose key frames are VIDEO@SECOND
        video = own.id.str.rpartition("@")[0] if boxes else own.id
        own["group"] = video.map(group)
        parts.append(own)
    columns = [*COLUMNS, "fold", "fraction", "label_probability"]
    if not parts:
        return pd.DataFrame(columns=columns)
    table = pd.concat(parts, ignore_index=True)
    more = [name for name in table.columns if name not in columns]
    return table[[*columns, *more]]


def _costs(plan: Plan) -> pd.DataFrame:
    rows = []
    for row in plan.rows:
        own = row.cost
        rows.append(
            {
                "method": row.row.name,
                "tunable_m": own.tunable_without_head / 1e6 if own else None,
                "tunable_with_head_m": own.tunable / 1e6 if own else None,
                "gflops": own.gmacs if own else None,
                "new_at_inference_m": own.new_at_inference / 1e6 if own else None,
                "training_gflops": row.training_gmacs if own else None,
            }
        )
    return pd.DataFrame(rows)


def _failed(plan: Plan, outcome: Outcome, name: str) -> int:
    """Final trainings of the row that have no result."""
    wanted = len(plan.parts) * plan.params.study.seeds
    good = [c for c, result in outcome.finals if c.row == name and result.state != "failed"]
    return wanted - len(good)


def _cells(plan: Plan, outcome: Outcome) -> pd.DataFrame:
    rows = [
        _cell(plan, outcome, cell, result) for cell, result in (*outcome.trials, *outcome.finals)
    ]
    for row in plan.rows:
        for part in plan.parts:
            if row.error or outcome.chosen.get((row.row.name, *part.place), NONE) == NONE:
                why = row.error or "every trial failed"
                place = {"method": row.row.name, "fold": part.fold, "fraction": part.fraction}
                rows.append({"kind": "final", **place, "state": "failed", "error": why})
    return pd.DataFrame(rows)


def _cell(plan: Plan, outcome: Outcome, cell: Cell, result: Result) -> dict[str, object]:
    last, validated = result.at(cell) if cell.kind == "trial" else {}, decisive(plan.task.score)
    choice = outcome.chosen.get((cell.row, cell.fold, cell.fraction), NONE)
    return {
        "kind": cell.kind,
        "method": cell.row,
        "fold": cell.fold,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "trial": cell.trial,
        "chosen": cell.trial == choice,
        "state": "stopped early" if result.state == "paused" else result.state,
        "settings": settings_text(plan, cell.row, cell.trial),
        "lr": result.lr or cell.params.method(cell.method).peak_lr(cell.params.train.batch_size),
        "epoch": result.epoch,
        "epochs": result.epochs,
        validated: last.get(validated),
        "val_loss": last.get("val_loss"),
        "train_top1": result.history[-1].get("train_top1") if result.history else None,
        "error": result.error,
        "training": cell.identity,
    }


def settings_text(plan: Plan, row: str, trial: int) -> str:
    """What the trial changed of its row, options of the method by their own names."""
    own = next(found for found in plan.rows if found.row.name == row)
    texts = own.settings[trial]
    prefix = f"methods.{own.row.method}."
    return " ".join(text.removeprefix(prefix) for text in texts) or "as given"


def _choices(plan: Plan, outcome: Outcome) -> pd.DataFrame:
    scores = {(c.row, c.fold, c.fraction, c.trial): r.at(c) for c, r in outcome.trials}
    rows, validated = [], decisive(plan.task.score)
    for (name, fold, fraction), trial in sorted(outcome.chosen.items()):
        settings = settings_text(plan, name, trial) if trial != NONE else "every trial failed"
        score = scores.get((name, fold, fraction, trial), {}).get(validated)
        place = {"method": name, "fold": fold, "fraction": fraction, "trial": trial}
        rows.append({**place, "settings": settings, validated: score})
    columns = ["method", "fold", "fraction", "trial", "settings", validated]
    return pd.DataFrame(rows, columns=columns)


def _curves(plan: Plan, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    parts = []
    for fraction in sorted(table.fraction.unique()):
        found = outcomes_of(table[table.fraction == fraction], plan.classes, names, plan.counted)
        own = accuracies(found, CURVE_RESAMPLES, permutations=0)
        own.insert(0, "fraction", fraction)
        parts.append(own.drop(columns="p_chance"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _classes(table: pd.DataFrame, names: list[str], found: AnyOutcomes) -> pd.DataFrame:
    if isinstance(found, RankedOutcomes):
        aps = pd.DataFrame(found.class_aps().T, pd.Index(found.classes, name="class"), names)
        return aps.dropna(how="all", axis=0).dropna(how="all", axis=1)
    right = table.assign(right=table.label == table.predicted)
    classes = right.pivot_table(index="label", columns="method", values="right", aggfunc="mean")
    classes.index.name = "class"
    return classes[[name for name in names if name in classes]]


def _hardest(table: pd.DataFrame) -> pd.DataFrame:
    """Columns id, label, group, right (share), most_often (the class predicted most), by
    (trainings), probability (mean, of the label); empty of boxes."""
    if "truth" in table:
        return pd.DataFrame()
    right = table.assign(right=table.label == table.predicted)
    found = right.groupby("id").agg(
        label=("label", "first"),
        group=("group", "first"),
        right=("right", "mean"),
        most_often=("predicted", lambda x: sorted(x.mode())[0]),
        by=("right", "size"),
        probability=("label_probability", "mean"),
    )
    return found.sort_values(["right", "probability"], kind="stable").reset_index()


def _orders(plan: Plan, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Columns method, NAME_SCORE of each order, shuffled_drop with its bounds and p over groups."""
    which = "probabilities" if "probabilities" in table else "predicted"
    if not all(f"{name}_{which}" in table for name in ORDERS):
        return pd.DataFrame()
    rows = []
    for name in names:
        own = table[table.method == name]
        if own.empty:
            continue
        row: dict[str, object] = {"method": name}
        # Orders as methods, on the same clips of the same groups.
        each = pd.concat(_of_order(own, order) for order in ORDERS)
        every = outcomes_of(each, plan.classes, ORDERS, plan.counted)
        for order, value in zip(every.methods, score(every), strict=True):
            row[f"{order}_{every.score}"] = float(value)
        both = every.common(["shuffled", "in_order"])
        found = against(both, "shuffled", chosen=False).iloc[0]
        drop = {"shuffled_drop": found.difference, "shuffled_drop_low": found.low}
        rows.append({**row, **drop, "shuffled_drop_high": found.high, "p": found.p})
    return pd.DataFrame(rows)


def _of_order(table: pd.DataFrame, order: str) -> pd.DataFrame:
    """Predictions with the frames in this order, as those of a method of its name."""
    which = "probabilities" if "probabilities" in table else "predicted"
    return table.assign(method=order, **{which: table[f"{order}_{which}"]})
