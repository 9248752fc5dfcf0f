"""Tables of annotations: CSV and Parquet, from strangers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vidpipe.data.layouts.common import closest, fail

MAX_COLUMNS, MAX_LINE, MAX_FOOTER = 10_000, 2**20, 2**26
"""Of a table; bytes of a CSV's line and of a Parquet's footer."""


def _refuse_wide_csv(path: Path) -> None:
    """Line by line, none of them read to its end if it has none: pandas takes minutes over a million
    columns. Raises VidpipeError."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            # As many commas are no harm in a quoted text, but no listing has such a text.
            if len(line) == MAX_LINE or line.count(b",") >= MAX_COLUMNS:
                raise fail(
                    f"data.annotations: {path}: line {number} has over {MAX_COLUMNS} columns or "
                    f"{MAX_LINE // 2**10} KiB; expected a table with a row a video"
                )


def _refuse_wide_parquet(path: Path) -> None:
    """By the footer's length, then by what it says. Raises VidpipeError, and pyarrow's exceptions."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        whole = file.read() == b"PAR1"
    if whole and (length > MAX_FOOTER or pq.read_metadata(path).num_columns > MAX_COLUMNS):
        raise fail(
            f"data.annotations: {path}: over {MAX_COLUMNS} columns or {MAX_FOOTER // 2**20} MiB of "
            "schema; expected a table with a row a video"
        )


def read_table(path: Path) -> pd.DataFrame:
    """CSV, or Parquet by its suffix: every value as text, empty where there is none.

    At most MAX_COLUMNS columns. The index is the row's number in the file, a CSV's header being row 1,
    a Parquet's first row 1.
    """
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            _refuse_wide_parquet(path)
            columns = pq.read_table(path)
            # A list a row, such as an embedding, is no text and no business of a listing.
            flat = [field.name for field in columns.schema if not pa.types.is_nested(field.type)]
            text = {name: columns[name].cast(pa.string()) for name in flat}
            table = pa.table(text).to_pandas(ignore_metadata=True).fillna("")
            table.index = table.index + 1
            return table
        _refuse_wide_csv(path)
        with warnings.catch_warnings():
            # Rows longer than the header would be cut, or shift into the index.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
                compression=None,  # by the name, a bomb
            ).fillna("")
    except FileNotFoundError:
        raise fail(f"data.annotations: {path}: no such file") from None
    except (OSError, ValueError, KeyError, pa.ArrowException, pd.errors.ParserWarning) as error:
        raise fail(f"data.annotations: {path}: not a readable table ({error})") from None
    table.index = table.index + 2
    return table[(table != "").any(axis=1)]


def need_columns(table: pd.DataFrame, names: Sequence[str], path: Path, hint: str = "") -> None:
    for name in names:
        if name not in table.columns:
            raise fail(f"{path}: no column {name!r}{closest(name, list(table.columns))}{hint}")
