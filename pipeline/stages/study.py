"""Stage `study`: methods compared fairly, each tuned within the training part of every fold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.infra.console import console, print_table
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.study import page
from pipeline.infra.study.kept import kept_file
from pipeline.infra.study.plan import Plan, cell_params, make_plan
from pipeline.infra.study.results import Tables, make_tables, outcomes_of
from pipeline.infra.study.runner import Outcome, run_study
from pipeline.infra.training_setup import seeded_model
from pipeline.infra.workspace import Workspace, open_store
from vidpipe.cpu import use_cpu
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, disk_errors_named, write_text
from vidpipe.params import Params
from vidpipe.study.null import null_study
from vidpipe.text import printable

TIMED = 15
"""Views of which the median is the latency."""
WIDTH = 170


def folder_of(params: Params, workspace: Workspace) -> Path:
    return workspace.results / "studies" / params.study.name


def run(
    params: Params,
    raw: Mapping[str, Any],
    workspace: Workspace,
    only: Sequence[str] | None = None,
) -> Tables:
    """Train what is missing of the rows (`only`: of these), and write results/studies/NAME: tables and
    report.md, the same on every run, and NAME.html with pictures and times.

    Raises VidpipeError where the study is impossible or no cell came to an end, Interrupted when asked
    to stop.
    """
    use_cpu(params.train.threads)
    plan = make_plan(params, raw, workspace, only)
    name, folder = params.study.name, folder_of(params, workspace)
    with (
        disk_errors_named(workspace.root / "study"),
        tracked_run(params.tracking, "study", name, plan.identity) as parent,
    ):
        # As one text: names of rows are anyone's, and MLflow takes few characters in a key.
        parent.params({"rows": len(plan.rows), "study": params.study.model_dump_json()})
        outcome = run_study(plan, parent, kept_file(workspace, name))
        tables = make_tables(plan, outcome)
        with atomic_folder(folder) as temporary:
            _write(tables, temporary)
            times = _times(plan, outcome)
            store = open_store(workspace, params)
            page.write(tables, f"Study {name}", times, store, temporary)
            html = temporary.with_name(f"{temporary.name}.html")
            html.replace(folder.with_name(f"{name}.html"))
        score = tables.score.column
        for row in tables.accuracy.dropna(subset=[score]).to_dict("records"):
            parent.metrics({f"{score}.{_metric(row['method'])}": row[score]})
        parent.artifact(folder / "report.md")
        parent.artifact(folder.with_name(f"{name}.html"))
    show(tables, name)
    console.print(f"wrote {folder} and {folder}.html")
    return tables


def _metric(name: str) -> str:
    """A name that MLflow takes for a metric."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in name)


def _write(tables: Tables, folder: Path) -> None:
    for name in ("cells", "predictions", "accuracy"):
        getattr(tables, name).to_parquet(folder / f"{name}.parquet", index=False)
    both = pd.concat([tables.best.assign(of="best"), tables.reference.assign(of="reference")])
    for name, table in {
        "accuracy": tables.accuracy,
        "differences": both,
        "curves": tables.curves,
        "choices": tables.choices,
        "per_class": tables.classes.reset_index(),
        "orders": tables.orders,
    }.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))


def show(tables: Tables, name: str) -> None:
    """Print accuracy, costs, why rows have no result, and the recommendation."""
    accuracy, costs = page.accuracy_section(tables), page.costs_section(tables)
    print_table(f"study {name}", accuracy.header, accuracy.rows, WIDTH)
    print_table("costs", costs.header, costs.rows, WIDTH)
    for line in (*accuracy.lines, *tables.sentences):
        print(printable(line))


def _times(plan: Plan, outcome: Outcome) -> pd.DataFrame:
    """method, latency_ms of a view on this machine, train_s of all trainings of the row."""
    seconds: dict[str, float] = {}
    for cell, result in (*outcome.trials, *outcome.finals):
        seconds[cell.row] = seconds.get(cell.row, 0.0) + result.seconds
    rows = []
    for row in plan.rows:
        name = row.row.name
        rows.append(
            {"method": name, "latency_ms": _latency(plan, name), "train_s": seconds.get(name)}
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def _latency(plan: Plan, name: str) -> float | None:
    """Milliseconds of one view of `name`'s model, merged where it can be; None where there is none."""
    row = next(row for row in plan.rows if row.row.name == name)
    if row.error is not None:
        return None
    params = cell_params(plan.raw, row.row.sets, plan.params.train.seed)
    trained = seeded_model(params, row.row.method, list(plan.classes))
    model = trained.model
    model = (model.merge() if model.not_mergeable is None else model).eval()
    clip, times = torch.zeros(1, 3, params.sampling.num_frames, *trained.form.sides), []
    for _ in range(TIMED + 3):
        started = time.perf_counter()
        model(clip)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[3:])


def null(params: Params, workspace: Workspace, studies: int) -> pd.DataFrame:
    """Print how often the tests see something in this study's predictions with permuted labels, and
    write it to null.csv beside them; the study's next run, which may predict otherwise, removes it.

    Raises VidpipeError where the study has not been run.
    """
    folder = folder_of(params, workspace)
    file = folder / "predictions.parquet"
    if not file.exists():
        raise VidpipeError(f"{file}: no such file; run `vidpipe study` first")
    table = pd.read_parquet(file)
    if "truth" in table:
        raise VidpipeError(
            f"{file}: labels of boxes follow each other in a video, so they cannot be permuted; --null "
            "is for clips"
        )
    names = list(dict.fromkeys(table.method))
    outcomes = outcomes_of(table, open_store(workspace, params).classes, names)
    found = null_study(outcomes, params.study.reference, studies)
    rows = [
        [
            *(str(row[key]) for key in ("test", "studies", "alarms")),
            f"{100 * row['rate']:.1f}",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
        ]
        for row in found.to_dict("records")
    ]
    title = f"false alarms at 5 %, labels permuted within {outcomes.num_groups} groups"
    print_table(title, ["test", "studies", "alarms", "%", "95 %"], rows)
    found = found.assign(groups=outcomes.num_groups)
    write_text(folder / "null.csv", found.to_csv(index=False))
    console.print(f"wrote {folder / 'null.csv'}")
    return found
