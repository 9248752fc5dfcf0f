"""Where predictions go: a table for people, JSON lines, or Parquet. None of them grows in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.infra.console import PlainConsole
from vidpipe.files import atomic_file
from vidpipe.inference.stream import Prediction
from vidpipe.text import json_line

VERSION = b"1"
_VERSION_KEY, _CLASSES_KEY = b"vidpipe.predictions.version", b"vidpipe.predictions.classes"
ROW_GROUP = 1024
PAGE = 500
"""Rows of one table on the screen; then the next begins."""
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("model", pa.string()),  # empty where the source could not be read
        ("part", pa.string()),  # video, segment, or box: a person at a second
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("status", pa.string()),  # ok or quarantined
        ("reason", pa.string()),  # machine-readable, as in the manifest; empty when ok
        ("detail", pa.string()),
        ("box", pa.list_(pa.float64())),  # x1, y1, x2, y2 as fractions of the frame; of a box
        ("box_score", pa.float64()),  # of whoever found it
        # The most probable, best first; of several labels a video, those that the model says, if any.
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),  # of `labels`
        ("all_probabilities", pa.list_(pa.float32())),  # in the model's own order of classes
    ]
)


def as_row(prediction: Prediction, top: int) -> dict[str, Any]:
    """A prediction as a row with the columns of SCHEMA."""
    row: dict[str, Any] = {
        **{"path": prediction.path, "model": prediction.model, "part": prediction.part},
        **{"start_s": round(prediction.start_s, 3), "end_s": round(prediction.end_s, 3)},
        **{"status": "quarantined" if prediction.reason else "ok", "reason": prediction.reason},
        **{"detail": prediction.detail, "labels": [], "probabilities": []},
        "all_probabilities": [],
    }
    if prediction.probabilities is not None:
        best = prediction.said(top)
        row["labels"] = [prediction.classes[i] for i in best]
        row["probabilities"] = prediction.probabilities[best].tolist()
        row["all_probabilities"] = prediction.probabilities.tolist()
    return row


class Writer(Protocol):
    def add(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A line a row, at once; without the probabilities of all classes."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def add(self, row: Mapping[str, Any]) -> None:
        short = {name: value for name, value in row.items() if name != "all_probabilities"}
        if not row.get("box"):  # of a video or segment
            short = {name: value for name, value in short.items() if not name.startswith("box")}
        short["probabilities"] = [round(p, 6) for p in row["probabilities"]]
        self.file.write(json_line(short) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.flush()


class Parquet:
    def __init__(self, path: Path, classes: Mapping[str, Sequence[str]]) -> None:
        metadata = {_VERSION_KEY: VERSION, _CLASSES_KEY: json.dumps(classes, default=list)}
        self.schema = SCHEMA.with_metadata(metadata)
        self.writer = pq.ParquetWriter(path, self.schema)
        self.rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self._flush()
        self.writer.close()


class Screen:
    """Tables of up to PAGE rows."""

    def __init__(self, file: IO[str], several_models: bool, windows: bool) -> None:
        self.console = PlainConsole(file=file)
        if not self.console.is_terminal:
            self.console.width = 200  # a file or pipe has no width to fit
        self.several_models, self.windows = several_models, windows
        self.rows = 0
        self.table = self._new()

    def _new(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("video", overflow="fold")
        if self.windows:
            table.add_column("seconds", no_wrap=True, justify="right")
        if self.several_models:
            table.add_column("model", no_wrap=True)
        table.add_column("prediction")
        return table

    def add(self, row: Mapping[str, Any]) -> None:
        said: str | Text
        if row["status"] == "ok":
            pairs = zip(row["labels"], row["probabilities"], strict=True)
            said = "  ".join(f"{label} {p:.1%}" for label, p in pairs) or "none of the classes"
        else:
            said = Text.assemble((row["reason"], "red"), f": {row['detail']}")
        cells: list[str | Text] = [row["path"]]
        if self.windows:
            span = f"{row['start_s']:.1f}-{row['end_s']:.1f}"
            if box := row.get("box"):
                edges = " ".join(f"{edge:.2f}" for edge in box)
                span = f"{row['start_s']:.1f} [{edges}]"
            cells.append("" if row["reason"] else "all" if row["part"] == "video" else span)
        if self.several_models:
            cells.append(row["model"])
        self.table.add_row(*cells, said)
        self.rows += 1
        if self.rows == PAGE:
            self.close()

    def close(self) -> None:
        if self.rows:
            self.console.print(self.table)
        self.table, self.rows = self._new(), 0


@contextmanager
def writer(
    form: str, out: Path | None, classes: Mapping[str, Sequence[str]], windows: bool
) -> Iterator[Writer]:
    """A writer of format `form` to `out`, which appears whole or not at all, or to standard output."""
    with ExitStack() as stack:
        file: IO[str] = sys.stdout
        if out is not None:
            temporary = stack.enter_context(atomic_file(out))
            if form != "parquet":
                file = stack.enter_context(temporary.open("w", encoding="utf-8"))
        made: Writer
        if form == "parquet":
            made = Parquet(temporary, classes)
        elif form == "jsonl":
            made = JsonLines(file)
        else:
            made = Screen(file, len(classes) > 1, windows)
        try:
            yield made
        finally:
            made.close()
