"""Stage `report`: one table and one picture over all methods, from what the stages wrote."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from pipeline.workspace import Workspace
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json, write_text
from vidpipe.viz.plots import plot_accuracy_against_parameters

# Column -> how a person reads it. Times come last: they are measured, not reproduced.
COLUMNS = {
    "method": "method",
    "top1": "top1 %",
    "in_pair_top1": "in-pair %",
    "tunable_m": "tunable M",
    "tunable_with_head_m": "+ head",
    "gflops": "GFLOPs/view",
    "new_at_inference_m": "new M at inference",
    "train_clips_per_s": "clips/s (train)",
    "latency_ratio": "latency / plain",
}
MEASURED = ("train_clips_per_s", "latency_ratio")


def run(methods: list[str], workspace: Workspace) -> pd.DataFrame:
    """Write results/report/ (numbers that reproduce, with the picture, tracked by DVC) and
    results/report.md and .csv (the whole table, with times, for people)."""
    table = pd.DataFrame([_row(method, workspace) for method in methods])
    table = table[[column for column in COLUMNS if column in table.columns]]
    reproducible = table.drop(columns=[c for c in MEASURED if c in table.columns])
    with atomic_folder(workspace.results / "report") as folder:
        reproducible.to_csv(folder / "accuracy.csv", index=False)
        plot_accuracy_against_parameters(table, folder / "accuracy_against_parameters.png")
    write_text(workspace.results / "report.csv", table.to_csv(index=False))
    write_text(workspace.results / "report.md", _markdown(table))
    _print(table)
    return table


def _row(method: str, workspace: Workspace) -> dict[str, object]:
    evaluated = workspace.result(method, "eval.json")
    if not evaluated.exists():
        raise VidpipeError(f"{evaluated}: no such file; run `vidpipe evaluate --method {method}`")
    result, training = read_json(evaluated), read_json(workspace.result(method, "train.json"))
    cost = training["cost"]
    timing = read_json(workspace.timing(method)) if workspace.timing(method).exists() else {}
    row: dict[str, object] = {
        "method": method,
        "top1": result["top1"],
        "tunable_m": cost["tunable_without_head"] / 1e6,
        "tunable_with_head_m": cost["tunable"] / 1e6,
        "gflops": cost["gmacs"],
        "new_at_inference_m": cost["new_at_inference"] / 1e6,
        **{key: timing.get(key) for key in MEASURED},
    }
    if "in_pair_top1" in result:
        row["in_pair_top1"] = result["in_pair_top1"]
    return row


def _cells(table: pd.DataFrame) -> list[list[str]]:
    formats: dict[str, Callable[[Any], str]] = {
        "top1": lambda v: f"{100 * v:.1f}",
        "in_pair_top1": lambda v: f"{100 * v:.1f}",
        "train_clips_per_s": lambda v: f"{v:.0f}",
        "latency_ratio": lambda v: f"{v:.2f}",
        "gflops": lambda v: f"{v:.3g}",
        "method": str,
    }

    def cell(column: str, value: object) -> str:
        if value is None or value != value:
            return "-"
        return formats.get(column, lambda v: f"{v:.3f}")(value)

    rows = table.to_dict("records")
    return [[cell(str(column), value) for column, value in row.items()] for row in rows]


def _markdown(table: pd.DataFrame) -> str:
    header = [COLUMNS[column] for column in table.columns]
    lines = [header, ["---"] * len(header), *_cells(table)]
    note = (
        "GFLOPs are multiply-accumulates of one view, as the papers print them. "
        "Times are of the machine that ran each stage.\n"
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + note


def _print(table: pd.DataFrame) -> None:
    shown = Table(title="vidpipe: methods side by side")
    for column in table.columns:
        shown.add_column(COLUMNS[column], justify="left" if column == "method" else "right")
    for row in _cells(table):
        shown.add_row(*row)
    # A result, so on standard output; a log file has no width, and eighty columns would cut it.
    Console(width=None if sys.stdout.isatty() else 130).print(shown)
