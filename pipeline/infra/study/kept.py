"""Cells of a study in one small file beside its results, from which another clone or sitting goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.infra.study.cell import PREDICTIONS, Result, read_result, write_result
from pipeline.infra.study.plan import Cell, cells_folder
from pipeline.infra.workspace import Workspace
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file, atomic_folder

KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def kept_file(workspace: Workspace, study: str) -> Path:
    """Beside the study's folder of results, which holds no times."""
    return workspace.results / "studies" / f"{study}.cells.parquet"


def kept_keys(file: Path) -> set[str]:
    """Of the cells in `file`; none where there is no file."""
    return {row["key"] for row in _rows(file)}


def keep(cells: Iterable[Cell], workspace: Workspace, file: Path) -> None:
    """Write what is known of `cells`, without checkpoints.

    One row a cell: its key, its result as JSON, and its predictions. A row of `file` that is not among
    `cells` stays: settings that were changed may be changed back.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {row["key"]: row for row in _rows(file)}
    for cell in cells:
        folder = cell.folder(workspace)
        result = read_result(folder)
        if result is None or result.state == "failed":
            continue
        table = folder / PREDICTIONS
        predictions = pq.read_table(table).to_pylist() if table.exists() else None
        rows[cell.key] = {
            "key": cell.key,
            "result": json.dumps(asdict(result)),
            "predictions": predictions,
        }
    if rows:
        ordered = [rows[key] for key in sorted(rows)]
        with atomic_file(file) as temporary:
            pq.write_table(pa.Table.from_pylist(ordered), temporary, compression="zstd")


def take_over(file: Path, workspace: Workspace) -> int:
    """Give `workspace` the cells of `file` that it lacks, and return how many those are.

    A cell is named by everything that decides it, so that one of other settings, weights or videos is
    never asked for. Raises VidpipeError where the file is no list of cells.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    for row in _rows(file):
        folder = cells_folder(workspace) / row["key"]
        known = read_result(folder)
        if known is not None and known.state != "failed":
            continue
        with atomic_folder(folder) as temporary:
            if row["predictions"] is not None:
                pq.write_table(pa.Table.from_pylist(row["predictions"]), temporary / PREDICTIONS)
            write_result(temporary, _result(row))
        count += 1
    return count


def _rows(file: Path) -> list[dict[str, Any]]:
    """key, result, predictions: a list with one mapping a clip, or None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return []
    try:
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            if not KEY.fullmatch(row["key"]) or _result(row).state == "failed":
                raise ValueError(f"a cell {row['key']!r}, {row['result']}")
            row["predictions"] = row.get("predictions")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise VidpipeError(
            f"{file}: expected the cells of a study ({str(error).splitlines()[0]}); "
            "delete it, and what it held is trained again"
        ) from None
    return rows


def _result(row: dict[str, Any]) -> Result:
    given = json.loads(row["result"])
    return Result(**{**given, "history": tuple(given["history"])})
