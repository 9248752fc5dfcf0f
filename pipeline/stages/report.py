"""Stage `report`: tables and pictures over all methods, from what the stages wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pipeline.infra.console import print_table
from pipeline.infra.html_page import Section, markdown, picture, write_page
from pipeline.infra.workspace import Workspace
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json, write_text
from vidpipe.viz.comparison import (
    MAP,
    ORDER_NAMES,
    TOP1,
    Score,
    plot_accuracy_against_gflops,
    plot_accuracy_against_parameters,
    plot_curves,
    plot_per_class,
    plot_ratios,
    plot_use_of_time,
)

# Column -> how a person reads it. Times come last: they are measured, not reproduced.
COLUMNS = {
    "method": "method",
    "map": "mAP %",
    "map_low": "from",
    "map_high": "to",
    "micro_f1": "F1 micro %",
    "macro_f1": "macro %",
    "map_truth_boxes": "of true boxes %",
    "temporal_map": "temporal mAP %",
    "frame_accuracy": "frames right %",
    "top1": "top1 %",
    "top1_low": "from",
    "top1_high": "to",
    "in_pair_top1": "in-pair %",
    "tunable_m": "tunable M",
    "tunable_with_head_m": "+ head",
    "gflops": "GFLOPs/view",
    "new_at_inference_m": "new M at inference",
    "train_clips_per_s": "clips/s (train)",
    "latency_ratio": "latency / plain",
}
MEASURED = ("train_clips_per_s", "latency_ratio")
TIME_COLUMNS = {
    "method": "method",
    **{
        f"{name}_{score.column}": f"{shown} %"
        for score in (MAP, TOP1)
        for name, shown in ORDER_NAMES.items()
    },
    "shuffled_drop": "lost by shuffling",
    "shuffled_drop_low": "from",
    "shuffled_drop_high": "to",
}
SHOWN = (
    *("map", "map_low", "map_high", "micro_f1", "macro_f1"),
    *("map_truth_boxes", "temporal_map", "frame_accuracy"),
)
"""Of several labels, boxes and stretches, beside what stands for one label a clip."""
WIDTH = 150
NOTE = (
    "{score} with the bounds of its 95 % bootstrap interval over clips. GFLOPs are multiply-accumulates "
    "of one view, as the papers print them. Times are of the machine that ran each stage."
)
STRETCHES = (
    " Temporal mAP is the mean over temporal IoUs of 0.3 to 0.7, of the stretches found in whole videos;"
    " frames right: of these videos, with nothing where nothing is labelled."
)
TIME_NOTE = (
    "{score} of the middle view with its frames in order, reversed, shuffled, and all replaced by the "
    "middle one. What shuffling loses (points, 95 % interval) is what the model owes to their order."
)


def run(methods: list[str], workspace: Workspace) -> pd.DataFrame:
    """Write results/report/ (numbers that reproduce, with the pictures, tracked by DVC) and
    results/report.md, .csv and .html (with times, for people)."""
    results = {method: _read(method, workspace, "eval.json") for method in methods}
    score = _score(results)
    note, time_note = (text.format(score=score.name) for text in (NOTE, TIME_NOTE))
    table = pd.DataFrame([_row(method, results[method], workspace) for method in methods])
    table = table[[column for column in COLUMNS if column in table.columns]]
    if "temporal_map" in table:
        note += STRETCHES
    times = _use_of_time(results)
    classes = _classes(methods, workspace, score)
    with atomic_folder(workspace.results / "report") as folder:
        reproducible = table.drop(columns=[c for c in MEASURED if c in table.columns])
        reproducible.to_csv(folder / "accuracy.csv", index=False)
        plot_accuracy_against_parameters(table, folder / "accuracy_against_parameters.png", score)
        plot_accuracy_against_gflops(table, folder / "accuracy_against_gflops.png", score)
        if len(times):
            times.to_csv(folder / "use_of_time.csv", index=False)
            plot_use_of_time(times, folder / "use_of_time.png", score)
        classes.to_csv(folder / "per_class.csv")
        plot_per_class(classes, folder / "per_class.png", score.name)
        histories = {m: pd.read_csv(workspace.result(m, "history.csv")) for m in methods}
        plot_curves(histories, folder / "training.png")
    write_text(workspace.results / "report.csv", table.to_csv(index=False))
    text = [markdown(_header(table, COLUMNS), _cells(table)), note]
    if len(times):
        text += [markdown(_header(times, TIME_COLUMNS), _cells(times)), time_note]
    write_text(workspace.results / "report.md", "\n\n".join(text) + "\n")
    _write_html(table, times, workspace, score, note, time_note)
    print_table("vidpipe: methods side by side", _header(table, COLUMNS), _cells(table), WIDTH)
    if len(times):
        title = f"{score.name} without the order of time"
        print_table(title, _header(times, TIME_COLUMNS), _cells(times), WIDTH)
    return table


def _score(results: dict[str, dict[str, Any]]) -> Score:
    """What these methods are compared by. Raises VidpipeError where they are of several tasks."""
    several = [method for method, result in results.items() if "map" in result]
    if 0 < len(several) < len(results):
        one = next(method for method in results if method not in several)
        raise VidpipeError(
            f"report: {several[0]} was evaluated for several labels a clip and {one} for one; they have "
            "no number in common"
        )
    return MAP if several else TOP1


def _read(method: str, workspace: Workspace, name: str) -> dict[str, Any]:
    path = workspace.result(method, name)
    if not path.exists():
        raise VidpipeError(f"{path}: no such file; run `vidpipe evaluate --method {method}`")
    found: dict[str, Any] = read_json(path)
    return found


def _row(method: str, result: dict[str, Any], workspace: Workspace) -> dict[str, object]:
    cost = _read(method, workspace, "train.json")["cost"]
    timing = read_json(workspace.timing(method)) if workspace.timing(method).exists() else {}
    row: dict[str, object] = {
        "method": method,
        "tunable_m": cost["tunable_without_head"] / 1e6,
        "tunable_with_head_m": cost["tunable"] / 1e6,
        "gflops": cost["gmacs"],
        "new_at_inference_m": cost["new_at_inference"] / 1e6,
        **{key: timing.get(key) for key in MEASURED},
    }
    shown = ("top1", "top1_low", "top1_high", "in_pair_top1")
    return {**row, **{key: result[key] for key in (*SHOWN, *shown) if key in result}}


def _use_of_time(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Accuracy by order of frames, a row a method evaluated with `evaluate.use_of_time`."""
    rows = [
        {"method": method, **{key: result[key] for key in TIME_COLUMNS if key in result}}
        for method, result in results.items()
        if "shuffled_drop" in result
    ]
    return pd.DataFrame(rows)


def _classes(methods: list[str], workspace: Workspace, score: Score) -> pd.DataFrame:
    """The score of every class (index) under every method (columns)."""
    tables = {
        method: pd.read_csv(workspace.result(method, "per_class.csv")).set_index("class")[
            score.of_class
        ]
        for method in methods
    }
    return pd.DataFrame(tables)


def _write_html(
    table: pd.DataFrame,
    times: pd.DataFrame,
    workspace: Workspace,
    score: Score,
    note: str,
    time_note: str,
) -> None:
    folder = workspace.results / "report"
    sections = [
        Section("Methods side by side", _header(table, COLUMNS), _cells(table), note),
        Section("Accuracy against cost").with_pictures(
            picture(
                folder / "accuracy_against_parameters.png",
                f"{score.name} against tunable parameters",
            ),
            picture(folder / "accuracy_against_gflops.png", f"{score.name} against GFLOPs"),
        ),
    ]
    if len(times):
        sections.append(
            Section(
                "Does it use time?", _header(times, TIME_COLUMNS), _cells(times), time_note
            ).with_pictures(
                picture(folder / "use_of_time.png", f"{score.name} by order of the frames")
            )
        )
    sections += [
        Section("By class").with_pictures(
            picture(folder / "per_class.png", f"{score.name} by class")
        ),
        Section("Training").with_pictures(picture(folder / "training.png", "training curves")),
    ]
    if table.latency_ratio.notna().any():
        with TemporaryDirectory() as scratch:
            # Not in the report's folder, which DVC tracks: a time differs on every run.
            path = Path(scratch) / "latency.png"
            title = "Latency of one clip over the plain image model's"
            plot_ratios(table, "latency_ratio", "times the plain image model", title, path)
            sections.append(Section("Latency").with_pictures(picture(path, title)))
    write_page(workspace.results / "report.html", "vidpipe: methods side by side", sections)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


FORMATS: dict[str, Callable[[Any], str]] = {
    "train_clips_per_s": lambda v: f"{v:.0f}",
    "latency_ratio": lambda v: f"{v:.2f}",
    "gflops": lambda v: f"{v:.3g}",
    "method": str,
}


def _cells(table: pd.DataFrame) -> list[list[str]]:
    def cell(column: str, value: object) -> str:
        if value is None or value != value:
            return "-"
        if any(part in column for part in ("top1", "drop", "map", "f1", "accuracy")):
            return _percent(value)  # type: ignore[arg-type]
        return FORMATS.get(column, lambda v: f"{v:.3f}")(value)

    rows = table.to_dict("records")
    return [[cell(str(column), value) for column, value in row.items()] for row in rows]


def _header(table: pd.DataFrame, names: dict[str, str]) -> list[str]:
    return [names[column] for column in table.columns]
