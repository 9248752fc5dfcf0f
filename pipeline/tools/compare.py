"""`vidpipe compare` and `vidpipe splits`: evaluated runs against each other, or averaged."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

Run = "METHOD evaluated here, FOLDER:METHOD of another --out, an evaluation folder, or an MLflow run id"


def compare(run_a: str, run_b: str, params: Path, out: Path) -> None:
    """What run B gains over run A on the same clips, overall and by class."""
    import pandas as pd
    from rich.console import Console

    from pipeline.infra.html_page import Section, picture, write_page
    from vidpipe.evaluation.compare import difference, per_class_difference
    from vidpipe.files import atomic_folder
    from vidpipe.viz.comparison import plot_class_differences

    a, b = (_open(text, params, out) for text in (run_a, run_b))
    table, classes = difference(a, b), per_class_difference(a, b)
    name = "-vs-".join(re.sub(r"[^\w.-]+", "_", run.name) for run in (a, b))
    folder = out / "results" / "compare" / name
    with atomic_folder(folder) as temporary:
        table.to_csv(temporary / "metrics.csv", index=False)
        classes.to_csv(temporary / "per_class.csv", index=False)
        image = temporary / "per_class.png"
        plot_class_differences(classes, a.name, b.name, image)
        header = ["metric", f"{a.name} %", f"{b.name} %", "difference", "95 % interval", "p"]
        rows = [_cells(row) for row in table.itertuples()]
        shown = pd.concat([classes.head(10), classes.tail(10)]).drop_duplicates("class")
        by_class = [
            [
                str(r["class"]),
                str(r["clips"]),
                *(f"{100 * r[k]:.1f}" for k in ("a", "b")),
                _signed(r),
            ]
            for r in shown.to_dict("records")
        ]
        sections = [
            Section("Overall", header, rows, NOTE),
            Section(
                "By class", ["class", "clips", f"{a.name} %", f"{b.name} %", "difference"], by_class
            ).with_pictures(picture(image, f"{b.name} against {a.name} by class")),
        ]
        write_page(temporary / "compare.html", f"{b.name} against {a.name}", sections)
    _print(f"{b.name} against {a.name}, {len(a.table)} clips", header, rows)
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"wrote {folder}/compare.html")


def splits(runs: list[str], params: Path, out: Path) -> None:
    """The mean over the splits of UCF101 or HMDB51, each trained and evaluated on its own."""
    from vidpipe.evaluation.compare import mean_of_splits

    table = mean_of_splits([_open(text, params, out) for text in runs])
    columns = list(table.columns)
    rows = [[str(row[0]), *(f"{100 * v:.2f}" for v in row[1:])] for row in table.to_numpy()]
    _print(f"mean of {len(runs)} splits", [columns[0], *(f"{c} %" for c in columns[1:])], rows)


NOTE = (
    "Difference in points with the 95 % interval of a paired bootstrap over clips; p: McNemar's exact "
    "test, the chance of a difference this large between two runs that are equally good."
)


def _cells(row) -> list[str]:  # type: ignore[no-untyped-def]
    p = "-" if row.p != row.p else f"{row.p:.2g}"
    bounds = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}"
    points = f"{100 * row.difference:+.1f}"
    return [row.metric, f"{100 * row.a:.1f}", f"{100 * row.b:.1f}", points, bounds, p]


def _signed(row: dict) -> str:  # type: ignore[type-arg]
    return f"{100 * row['difference']:+.1f}"


def _print(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def _open(text: str, params: Path, out: Path):  # type: ignore[no-untyped-def]
    """The evaluation that `text` names. Raises VidpipeError where there is none."""
    from pipeline.infra.workspace import Workspace
    from vidpipe.errors import VidpipeError

    root, _, method = text.rpartition(":")
    places = [Workspace(Path(root) if root else out).evaluation(method), Path(text)]
    for place in places:
        if (place / "predictions.parquet").is_file():
            return _read(place, text)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        from pipeline.infra.mlflow.tracking import download
        from vidpipe.params import load_params

        with TemporaryDirectory() as scratch:
            config = load_params(params).tracking
            return _read(download(config, text, "evaluation", Path(scratch)), text[:8])
    raise VidpipeError(
        f"{text}: no evaluation found ({places[0]}/predictions.parquet); expected {Run}"
    )


def _read(folder: Path, name: str):  # type: ignore[no-untyped-def]
    import pandas as pd

    from vidpipe.errors import VidpipeError
    from vidpipe.evaluation.compare import Evaluated
    from vidpipe.files import read_json

    source = folder / "predictions.parquet"
    try:
        table = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise VidpipeError(f"{source}: not a readable Parquet file ({error})") from None
    config = read_json(folder / "config.json")
    needed = {"id", "label", "predicted", "top5"}
    if (missing := sorted(needed - set(table))) or "classes" not in config:
        raise VidpipeError(
            f"{source}: no column {', '.join(missing) or 'classes (config.json)'}; evaluate this run "
            "again with this version"
        )
    return Evaluated(
        name.replace("/", "_") if len(name) > 40 else name, tuple(config["classes"]), table
    )
