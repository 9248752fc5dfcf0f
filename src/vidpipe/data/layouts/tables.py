"""Tables of annotations: CSV and Parquet, from strangers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vidpipe.data.layouts.common import closest, fail


def read_table(path: Path) -> pd.DataFrame:
    """CSV, or Parquet by its suffix: every value as text, empty where there is none.

    The index is the row's number in the file, a CSV's header being row 1, a Parquet's first row 1.
    """
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            columns = pq.read_table(path)
            # A list a row, such as an embedding, is no text and no business of a listing.
            flat = [field.name for field in columns.schema if not pa.types.is_nested(field.type)]
            text = {name: columns[name].cast(pa.string()) for name in flat}
            table = pa.table(text).to_pandas(ignore_metadata=True).fillna("")
            table.index = table.index + 1
            return table
        with warnings.catch_warnings():
            # Rows longer than the header would be cut, or shift into the index.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False
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
