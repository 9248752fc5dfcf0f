"""Files in AVA's format, from strangers: rows of boxes, label maps, timestamps that are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidpipe.data.layouts.common import fail
from vidpipe.data.layouts.tables import need_columns, read_table

TOLERANCE = 0.01
"""Of a box over the edge of its frame: annotators and detectors round; what is over is cut off."""
NAMES = ("video", "timestamp", "x1", "y1", "x2", "y2", "score")
"""Columns of proposals in a Parquet file; the last may be absent."""
MAX_LABEL_MAP = 2**20
"""Bytes of a label map; AVA's has 4 KiB."""
_ITEM = re.compile(r"(?:item|label)\s*\{([^{}]*)\}")
_NAME = re.compile(r'(?:^|[\s;,])name\s*:\s*"([^"\n]*)"')
_ID = re.compile(r"(?:^|[\s;,])(?:label_)?id\s*:\s*(\d{1,9})\b")

Frame = tuple[str, int]
"""A video's name and a second of it."""


@dataclass(frozen=True)
class Boxes:
    """Rows of an AVA file in its order.

    Args:
        frames: the distinct key frames, in order of first appearance.
        frame: (N,) index into `frames`.
        boxes: (N, 4) x1, y1, x2, y2 as fractions of the frame's width and height.
        action: (N,) id of the label map; 0 in proposals.
        score: (N,) the last column: a score, or the person's id in ground truth; 1 where it is absent.
    """

    frames: list[Frame]
    frame: NDArray[np.int64]
    boxes: NDArray[np.float64]
    action: NDArray[np.int64]
    score: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frame)


def read_label_map(path: str | Path) -> dict[int, str]:
    """Action id -> name of a label map in protobuf's text format (`item { name: "stand" id: 12 }`).

    Raises:
        VidpipeError: for a file that is none, and for an id that occurs twice.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_LABEL_MAP + 1)
        text = re.sub(r"(?m)^\s*#.*$", "", raw.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{path}: not a readable label map ({error})") from None
    if len(raw) > MAX_LABEL_MAP:
        raise fail(f"{path}: over {MAX_LABEL_MAP // 2**10} KiB; expected a label map")
    names: dict[int, str] = {}
    for item in _ITEM.findall(text):
        name, number = _NAME.search(item), _ID.search(item)
        if name is None or number is None:
            raise fail(f'{path}: an item without a name: "..." or an id: {item.strip()[:80]!r}')
        if int(number[1]) in names or int(number[1]) == 0:
            raise fail(f"{path}: id {number[1]} occurs twice or is 0; expected distinct ids from 1")
        names[int(number[1])] = name[1]
    if not names:
        raise fail(f'{path}: no item {{ name: "..." id: ... }}; expected a label map (pbtxt)')
    return names


def read_boxes(path: str | Path, *, proposals: bool = False) -> Boxes:
    """`video, timestamp, x1, y1, x2, y2, action id[, person id or score]`, without a header.

    Args:
        path: a CSV; of proposals also a Parquet file with the columns NAMES.
        proposals: whether it has no action: `video, timestamp, x1, y1, x2, y2[, score]`.

    Raises:
        VidpipeError: with file and row, for what is no number, a timestamp that is not a whole second
            or a row of other columns.
    """
    path = Path(path)
    least = 6 if proposals else 7
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise fail(
            f"{path}: a pickle, which can run any program when it is read; turn it into a CSV: "
            "vidpipe data convert-proposals"
        )
    table = _rows(path, least, least + 1)
    actions = np.zeros(len(table)) if proposals else table[6].to_numpy()
    _refuse_rows(path, table, (actions % 1 != 0) | (actions < 0), 6, "an action id, a whole number")
    frames, frame = _frames(table)
    scores = table[least]
    return Boxes(
        frames,
        frame,
        np.ascontiguousarray(table[[2, 3, 4, 5]].to_numpy(np.float64)),
        actions.astype(np.int64),
        scores.fillna(1.0).to_numpy(np.float64),
    )


def read_excluded(path: str | Path) -> frozenset[Frame]:
    """`video, timestamp` a row: key frames that no one looks at.

    Raises:
        VidpipeError: as `read_boxes`.
    """
    frames, _ = _frames(_rows(Path(path), 2, 2))
    return frozenset(frames)


def inside(path: Path, rows: Boxes) -> NDArray[np.float64]:
    """(N, 4) of its boxes, cut off at the frame. Raises VidpipeError, with file and row, for an inverted
    one and for one outside."""
    low, high = rows.boxes[:, :2], rows.boxes[:, 2:]
    refuse(path, rows, np.any(low >= high, axis=1), "x1 < x2 and y1 < y2")
    outside = np.any((rows.boxes < -TOLERANCE) | (rows.boxes > 1 + TOLERANCE), axis=1)
    refuse(path, rows, outside, "fractions of the frame, 0 to 1")
    return np.clip(rows.boxes, 0, 1)


def refuse(
    path: Path, rows: Boxes, wrong: NDArray[np.bool_], expected: str, action: bool = False
) -> None:
    """Raise VidpipeError for the first row that is `wrong`, where one is."""
    if wrong.any():
        row = int(wrong.argmax())
        video, second = rows.frames[rows.frame[row]]
        box = ", ".join(f"{edge:g}" for edge in rows.boxes[row])
        said = f"action {rows.action[row]}" if action else f"box {box}"
        raise fail(f"{path}: row {row + 1} ({video}, second {second}): {said}; expected {expected}")


def _rows(path: Path, least: int, most: int) -> pd.DataFrame:
    """`most` columns, numbers but for the first; the last `most - least` may be absent (nan)."""
    columns = list(range(most + 1))  # one more: rows that are too long
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _checked(path, _of_parquet(path, least, most), least, most)
        table = pd.read_csv(
            path,
            header=None,
            names=columns,
            index_col=False,
            dtype={0: str},
            keep_default_na=False,
            na_values=cast(Any, {column: [""] for column in columns[1:]}),  # stubs: names only
            float_precision="round_trip",
            low_memory=False,
            compression=None,  # by the name, a bomb
        )
    except pd.errors.EmptyDataError:
        table = pd.DataFrame({column: pd.Series(dtype=float) for column in columns})
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise fail(f"{path}: not a readable table ({error})") from None
    _refuse_rows(path, table, table[most].notna().to_numpy(), most, f"at most {most} columns")
    return _checked(path, table, least, most)


def _of_parquet(path: Path, least: int, most: int) -> pd.DataFrame:
    table = read_table(path)
    need_columns(table, NAMES[:least], path)
    found = table.reindex(columns=list(NAMES[:most])).replace({"": None})
    return found.set_axis(range(most), axis=1).reset_index(drop=True)


def _checked(path: Path, table: pd.DataFrame, least: int, most: int) -> pd.DataFrame:
    columns = list(range(most + 1))
    for column in columns[1:most]:
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        wrong = ~np.isfinite(numbers.to_numpy())
        if column >= least:  # may be absent
            wrong &= table[column].notna().to_numpy()
        _refuse_rows(path, table, wrong, column, f"a number, in {least} to {most} columns")
        table[column] = numbers
    seconds = table[1].to_numpy()
    _refuse_rows(
        path, table, (seconds % 1 != 0) | (np.abs(seconds) > 2**40), 1, "a whole number of seconds"
    )
    return table


def _refuse_rows(
    path: Path, table: pd.DataFrame, wrong: NDArray[np.bool_], column: int, expected: str
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        value = str(table.iloc[row, column])[:80]
        raise fail(f"{path}: row {row + 1}, column {column + 1}: {value!r}; expected {expected}")


def _frames(table: pd.DataFrame) -> tuple[list[Frame], NDArray[np.int64]]:
    """The distinct key frames in order of first appearance, and each row's."""
    videos, names = pd.factorize(table[0])
    seconds, times = pd.factorize(table[1])
    codes, distinct = pd.factorize(videos.astype(np.int64) * max(1, len(times)) + seconds)
    pairs = [divmod(int(code), max(1, len(times))) for code in distinct]
    return [(str(names[v]), int(times[s])) for v, s in pairs], codes.astype(np.int64)
