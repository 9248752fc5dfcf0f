"""`vidpipe compare` and `vidpipe splits`: evaluated runs against each other, or averaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pipeline.infra.console import console, print_table
from pipeline.infra.html_page import Section, picture, write_page
from pipeline.infra.workspace import Workspace
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import (
    Evaluated,
    difference,
    mean_of_splits,
    per_class_difference,
)
from vidpipe.evaluation.own_score import box_differences, own_row
from vidpipe.files import atomic_folder, read_json
from vidpipe.params import TrackingConfig
from vidpipe.viz.comparison import plot_class_differences

Tracking = Callable[[], TrackingConfig]
"""Reads where MLflow is; called only for a run that is not on this disk."""
NOTE = (
    "Difference in points with the 95 % interval of a paired bootstrap over clips; p: McNemar's exact "
    "test, the chance of a difference this large between two runs that are equally good."
)
GROUPS = (
    "Difference in points with the 95 % interval of a paired bootstrap over groups (`data.group`, else "
    "videos): the key frames of a video are no independent samples."
)


def compare(run_a: str, run_b: str, tracking: Tracking, out: Path) -> None:
    """Print what run B gains over run A on the same clips, and write it, overall and by class, into
    `out`/results/compare. Raises VidpipeError for a run that is not found or has other clips."""
    a, b = (_open(text, tracking, out) for text in (run_a, run_b))
    table, classes = _differences(a, b)
    name = "-vs-".join(re.sub(r"[^\w.-]+", "_", run.name) for run in (a, b))
    folder = out / "results" / "compare" / name
    header = ["metric", f"{a.name} %", f"{b.name} %", "difference", "95 % interval", "p"]
    rows = [_cells(row) for row in table.to_dict("records")]
    with atomic_folder(folder) as temporary:
        table.to_csv(temporary / "metrics.csv", index=False)
        classes.to_csv(temporary / "per_class.csv", index=False)
        image = temporary / "per_class.png"
        score = "top-1" if a.task == "single_label" else "AP"
        plot_class_differences(classes, a.name, b.name, image, score)
        shown = pd.concat([classes.head(10), classes.tail(10)]).drop_duplicates("class")
        by_class = [_class_cells(row) for row in shown.to_dict("records")]
        columns = ["class", classes.columns[1], f"{a.name} %", f"{b.name} %", "difference"]
        drawn = picture(image, f"{b.name} against {a.name} by class")
        sections = [
            Section("Overall", header, rows, NOTE if a.task != "detection" else GROUPS),
            Section("By class", columns, by_class).with_pictures(drawn),
        ]
        write_page(temporary / "compare.html", f"{b.name} against {a.name}", sections)
    count = f"{len(a.table)} {'boxes' if a.task == 'detection' else 'clips'}"
    print_table(f"{b.name} against {a.name}, {count}", header, rows)
    console.print(f"wrote {folder}/compare.html")


def _differences(a: Evaluated, b: Evaluated) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overall and by class: boxes by frame mAP, clips by shares, stretches by temporal mAP as well."""
    if a.task == b.task == "detection":
        return own_row(a, b), box_differences(a, b)
    table = difference(a, b)
    if a.timeline is not None and b.timeline is not None:
        table = pd.concat([own_row(a, b), table], ignore_index=True)
    return table, per_class_difference(a, b)


def splits(runs: Sequence[str], tracking: Tracking, out: Path) -> None:
    """Print the mean over the splits of UCF101 or HMDB51, each trained and evaluated on its own."""
    table = mean_of_splits([_open(text, tracking, out) for text in runs])
    columns = list(table.columns)
    rows = [[str(row[0]), *(f"{100 * v:.2f}" for v in row[1:])] for row in table.to_numpy()]
    print_table(f"mean of {len(runs)} splits", [columns[0], *(f"{c} %" for c in columns[1:])], rows)


def _cells(row: dict[Any, Any]) -> list[str]:
    p = "-" if pd.isna(row["p"]) else f"{row['p']:.2g}"
    bounds = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    values = (f"{100 * row[key]:.1f}" for key in ("a", "b"))
    return [row["metric"], *values, f"{100 * row['difference']:+.1f}", bounds, p]


def _class_cells(row: dict[Any, Any]) -> list[str]:
    values = (f"{100 * row[key]:.1f}" for key in ("a", "b"))
    count = row["boxes"] if "boxes" in row else row["clips"]
    return [str(row["class"]), str(count), *values, f"{100 * row['difference']:+.1f}"]


def _open(text: str, tracking: Tracking, out: Path) -> Evaluated:
    """The evaluation that `text` names. Raises VidpipeError where there is none."""
    root, _, method = text.rpartition(":")
    places = [Workspace(Path(root) if root else out).evaluation(method), Path(text)]
    for place in places:
        if (place / "predictions.parquet").is_file():
            return read_evaluation(place, text)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        from pipeline.infra.mlflow.server import download  # two seconds, where it is of use

        with TemporaryDirectory() as scratch:
            return read_evaluation(
                download(tracking(), text, "evaluation", Path(scratch)), text[:8]
            )
    raise VidpipeError(
        f"{text}: no evaluation found ({places[0]}/predictions.parquet); expected METHOD evaluated "
        "here, FOLDER:METHOD of another --out, an evaluation folder, or an MLflow run id"
    )


def read_evaluation(folder: Path, name: str) -> Evaluated:
    """What `vidpipe evaluate` left in `folder`. Raises VidpipeError where it is not whole."""
    source = folder / "predictions.parquet"
    try:
        table = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise VidpipeError(f"{source}: not a readable Parquet file ({error})") from None
    config = read_json(folder / "config.json")
    needed = {"id", "label", "predicted", "top5", "probabilities"}
    if (missing := sorted(needed - set(table))) or "classes" not in config:
        raise VidpipeError(
            f"{source}: no column {', '.join(missing) or 'classes (config.json)'}; evaluate this run "
            "again with this version"
        )
    timeline = folder / "timeline.parquet"
    scored = config.get("scored")
    return Evaluated(
        name.replace("/", "_") if len(name) > 40 else name,
        tuple(config["classes"]),
        table,
        config.get("task", "single_label"),
        pd.read_parquet(timeline) if timeline.is_file() else None,
        None if scored is None else tuple(scored),
    )
