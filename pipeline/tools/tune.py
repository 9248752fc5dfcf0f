"""`vidpipe tune`: a search over any parameters of a training, with its table and its best trial.

Trials write nothing into models/ or results/; the search leaves results/tune/METHOD.csv.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from pipeline.infra import probes
from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.ray.tune import NestedRuns, Outcome, Search, run_trials
from pipeline.infra.search_space import overrides, parse_space, resolve
from pipeline.infra.workspace import Workspace, data_hash, open_store
from vidpipe.config.identity import config_hash
from vidpipe.data.dataset import Clips
from vidpipe.errors import VidpipeError
from vidpipe.files import write_text
from vidpipe.params import deciding_sections
from vidpipe.tasks.base import Task
from vidpipe.tasks.clips import open_clips
from vidpipe.tasks.registry import TASKS
from vidpipe.training.metrics import decisive


def run(
    raw: dict[str, Any], method: str, texts: list[str], search: Search, workspace: Workspace
) -> str:
    """Search `texts` (`checked_texts`) over the params `raw`, show a table and leave it in
    `results/tune/METHOD.csv`: one row a trial in the order they were made.

    Returns the command that writes the best trial's values into the params file. Raises VidpipeError
    when no trial succeeded.
    """
    params, space = resolve(raw, []), parse_space(texts)
    epochs = search.max_epochs or params.train.epochs
    store, task = open_store(workspace, params), TASKS[params.data.task]
    by = decisive(task.score)
    _refuse_unscored(open_clips(store, "val", store.classes), task)
    identity = config_hash(
        *(method, deciding_sections(params, "train", method), params.backbone.weights),
        {key: asdict(domain) for key, domain in space.items()},
        *(search.trials, epochs, search.algorithm, search.seed, data_hash(workspace, params)),
    )
    payload = {
        "raw": raw,
        "method": method,
        "epochs": epochs,
        "decisive": by,
        "classes": list(store.classes),
        "store": str(Path(params.data.store or workspace.store).resolve()),
        "cwd": str(Path.cwd()),
    }
    with tracked_run(params.tracking, "tune", method, identity) as parent:
        parent.params({"method": method, "max_epochs": epochs, "trials": search.trials})
        parent.params({"search": search.algorithm, "seed": search.seed})
        spaces = (text.partition("=") for text in texts)
        parent.params({f"space.{key}": domain for key, _, domain in spaces})
        folder = workspace.ray / f"tune-{method}-{identity}"
        if probes.possible(params, method, space, search):
            where = (workspace, identity, parent.run_id)
            outcomes = probes.run_together(raw, method, space, search, epochs, *where)
        else:
            nested = NestedRuns(params.tracking, method, identity, parent.run_id)
            outcomes = run_trials(folder, payload, space, search, params.train, nested)
        table = _table(outcomes, epochs, by)
        target = workspace.results / "tune" / f"{method}.csv"
        write_text(target, table.to_csv(index=False))
        best = _best(table, by)
        parent.metrics({key: best[key] for key in (by, "val_loss")})
        parent.tags({f"best.{key}": best[key] for key in space})
        _show(table, best, method, target, by, task)
    # Until MLflow has all, the same command finds the search done.
    shutil.rmtree(folder, ignore_errors=True)
    sets = (f"--set {shlex.quote(f'{key}={best[key]}')}" for key in space)
    return f"vidpipe params --write {' '.join(sets)}"


def _table(outcomes: list[Outcome], epochs: int, by: str) -> pd.DataFrame:
    """One row a trial: its overrides as texts, how far it came, what it reached, how it ended."""
    rows = []
    for number, outcome in enumerate(outcomes, start=1):
        metrics = outcome.metrics
        done = int(metrics.get("epoch", 0))
        state = "finished" if done == epochs else "stopped early"
        rows.append(
            {
                "trial": number,
                **dict(text.split("=", 1) for text in overrides(outcome.sampled)),
                "epochs": done,
                **{key: metrics.get(key) for key in (by, "val_loss")},
                "state": f"failed: {outcome.error}" if outcome.error else state,
            }
        )
    return pd.DataFrame(rows)


def _best(table: pd.DataFrame, by: str) -> dict[str, Any]:
    """The trial with the highest last number `by`; of equals, the lowest val_loss."""
    good = table[~table.state.str.startswith("failed")].dropna(subset=[by])
    if good.empty:
        raise VidpipeError(f"every trial failed; the first: {table.state.iloc[0]}")
    ordered = good.sort_values([by, "val_loss"], ascending=[False, True], kind="stable")
    return {str(key): value for key, value in ordered.iloc[0].items()}


def _show(
    table: pd.DataFrame, best: dict[str, Any], method: str, target: Path, by: str, task: Task
) -> None:
    shown = Table(title=f"{method}: {len(table)} trials")
    for column in table.columns:
        shown.add_column(column.removeprefix(f"methods.{method}."))
    for row in table.to_dict("records"):
        score = "" if pd.isna(row[by]) else f"{row[by]:.1%}"
        loss = "" if pd.isna(row["val_loss"]) else f"{row['val_loss']:.3f}"
        cells = [str(v) for v in (row | {by: score, "val_loss": loss}).values()]
        shown.add_row(*cells, style="bold" if row["trial"] == best["trial"] else "")
    console.print(shown)
    name = "top1" if by == "val_top1" else task.score_name
    console.print(f"{target}; best: trial {best['trial']}, val {name} {best[by]:.1%}")


def _refuse_unscored(clips: Clips, task: Task) -> None:
    """Raises VidpipeError where trials could not be compared."""
    if task.score != "top1" and not clips.labels.any():
        raise VidpipeError(
            f"{clips.store.root}: none of {len(clips)} clips of split val has a class, so there is no "
            f"{task.score_name} to choose by; check the labels, or the split"
        )
