"""How long a study says that it still takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipeline.infra.study.runner import _Pace


def learn(pace: _Pace, row: str, seconds: float, epoch: int = 10) -> None:
    cell: Any = SimpleNamespace(row=row, train="ab")
    result: Any = SimpleNamespace(epoch=epoch, seconds=seconds, test_seconds=0.0)
    pace.learn(cell, result, {"cheap": 1.0, "dear": 3.0, "other": 1.0})


def test_each_row_goes_at_its_own_pace_and_two_cells_at_once_in_half_the_time() -> None:
    pace = _Pace()
    assert pace.left({"cheap": 20.0}, 1) == "time left unknown"
    learn(pace, "cheap", 2.0)  # 20 units of work
    learn(pace, "dear", 240.0)  # 60
    assert pace.left({"cheap": 200.0, "dear": 60.0}, 1) == "4.33 min left"
    assert pace.left({"cheap": 200.0, "dear": 60.0}, 2) == "2.17 min left"
    assert (
        pace.left({"cheap": 0.0, "other": 80.0}, 1) == "4.03 min left"
    )  # of no pace yet: the mean
    assert pace.left({"cheap": -1e-9, "dear": 0.0}, 2) == "0 s left"
