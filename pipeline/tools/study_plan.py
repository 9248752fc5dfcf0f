"""`vidpipe study --dry-run`: cells, hours and disk of a study, by timing a few real steps."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.infra.console import print_table
from pipeline.infra.pace import duration, view_seconds
from pipeline.infra.study.cell import done
from pipeline.infra.study.kept import kept_file, kept_keys
from pipeline.infra.study.plan import Plan, RowPlan, cell_params, make_plan
from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace, open_store
from vidpipe.device import choose_device, set_determinism
from vidpipe.evaluation.evaluate import ORDERS
from vidpipe.params import Params
from vidpipe.training.loop import Trainer
from vidpipe.training.state import Progress

WARM_UP, TIMED = 1, 3
PREDICTION_BYTES = 120
"""Of a tested clip in a cell's Parquet file, about."""
SCORE_BYTES = 4 * (1 + len(ORDERS))
"""Of each class beside it, where the task's score is a mAP: in each order of the frames."""


@dataclass(frozen=True)
class Pace:
    """Seconds a clip, of a training step and of a view."""

    training: float
    view: float


def run(
    params: Params,
    raw: Mapping[str, Any],
    workspace: Workspace,
    only: Sequence[str] | None = None,
) -> None:
    """Print the plan. Nothing is written. Raises VidpipeError as the study would."""
    plan = make_plan(params, raw, workspace, only)
    rows, total, finals, searches = [], 0.0, 0, 0
    for row in plan.rows:
        if row.error is not None:
            rows.append([row.row.name, "-", "-", "-", "-", f"fails: {row.error}"])
            continue
        pace = _pace(plan, row)
        counts, seconds = _cells(plan, row, pace)
        total += seconds
        searches, finals = searches + counts[0], finals + counts[1]
        tunable = row.cost.tunable if row.cost else 0
        rows.append(
            [
                row.row.name,
                str(len(row.settings)),
                str(counts[0]),
                str(counts[1]),
                duration(seconds),
                f"{12 * tunable * counts[0] / 2**20:.0f} MiB",
            ]
        )
    study, groups = params.study, len(plan.clips.group_names())
    header = ["row", "settings", "trials", "final", "time", "checkpoints"]
    print_table(f"study {study.name}", header, rows)
    workers = max(1, study.num_workers)
    tested = sum(len(p.test) for p in plan.parts) * study.seeds * len(plan.rows)
    ranked = plan.task.score != "top1"
    each = PREDICTION_BYTES + (SCORE_BYTES * len(plan.classes) if ranked else 0)
    for name, value in {
        "data": f"{len(plan.clips):,} clips, {groups} groups, {len(plan.classes)} classes",
        "folds": f"{len({p.fold for p in plan.parts})}, at {len(study.fractions)} fractions",
        "cells": f"{searches + finals}: {searches} trials, {finals} final trainings; "
        f"{_known(plan)} of the trials' first rungs are done",
        "time": f"{duration(total / workers)} on {workers} at a time (each alone on this machine)",
        "disk": f"{each * tested / 2**20:.1f} MiB of predictions stay; checkpoints as above "
        "at the most, removed once all rows have chosen",
    }.items():
        print(f"{name:8} {value}")


def _pace(plan: Plan, row: RowPlan) -> Pace:
    """From a few steps of the row's own trainer on the first fold."""
    params = cell_params(plan.raw, row.row.sets, plan.params.train.seed)
    part = plan.parts[0]
    store = open_store(plan.workspace, params).split_as(part.train, part.test)
    setup = TrainingSetup.build(params, row.row.method, plan.workspace, store=store)
    device = choose_device(params.train.use_gpu)
    if not row.trains:
        return Pace(0.0, view_seconds(setup, device))
    trainer = setup.trainer(device)
    epochs, clips = params.train.epochs, min(params.train.batch_size, len(setup.train_set))
    decoded = 3 * int(store.rows[["frames", "height", "width"]].prod(axis=1).sum())
    with set_determinism(params.train.deterministic):
        # The same clips twice: the first epoch of a study decodes them, the others need not where
        # they fit in memory.
        cold, warm = _step_seconds(trainer), _step_seconds(trainer)
        view = view_seconds(setup, device)
    fits = decoded <= params.train.cache_mb * 2**20
    step = (cold + (epochs - 1) * warm) / epochs if fits else cold
    return Pace(step / clips, view)


def _step_seconds(trainer: Trainer) -> float:
    """Of the first steps of the first epoch, the median."""
    trainer.progress = Progress()
    timed = [info.seconds for info in itertools.islice(trainer.steps(), WARM_UP + TIMED)]
    return statistics.median(timed[WARM_UP:] or timed)


def _cells(plan: Plan, row: RowPlan, pace: Pace) -> tuple[tuple[int, int], float]:
    """((trials, final trainings), seconds)."""
    study, epochs, seconds, trials = plan.params.study, plan.params.train.epochs, 0.0, 0
    for part in plan.tuned_parts:
        if part.inner is None or len(row.settings) < 2:
            continue
        before = 0.0
        for count, share in plan.rungs(len(row.settings)):
            each = len(part.inner.train) * pace.training + len(part.inner.test) * pace.view
            seconds += count * epochs * (share - before) * each
            before = share
        trials += len(row.settings)
    evaluate = plan.params.evaluate
    views = evaluate.temporal_clips * evaluate.spatial_crops + (4 if evaluate.use_of_time else 0)
    # What trains nothing is tested once a fold, for all seeds and fractions.
    of_fold = {part.fold: part for part in plan.parts}
    parts = plan.parts * study.seeds if row.trains else list(of_fold.values())
    for part in parts:
        seconds += epochs * len(part.train) * pace.training + len(part.test) * views * pace.view
    return (trials, len(parts)), seconds


def _known(plan: Plan) -> int:
    """Trials whose first rung has a result here, or in the file that another sitting left."""
    kept, found = kept_keys(kept_file(plan.workspace, plan.params.study.name)), 0
    for row in plan.rows:
        for part in plan.tuned_parts if row.error is None and len(row.settings) > 1 else ():
            if part.inner is not None:
                count, share = plan.rungs(len(row.settings))[0]
                cells = plan.trial_cells(row, part, range(count), 0.0, share)
                found += sum(
                    cell.key in kept or done(cell, plan.workspace) is not None for cell in cells
                )
    return found
