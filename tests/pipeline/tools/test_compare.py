"""`vidpipe compare` of people in boxes and of stretches: the task's own score, over groups."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project import command

CLASSES = ["sit", "stand", "walk"]


def leave(folder: Path, table: pd.DataFrame, task: str, **more: object) -> None:
    """An evaluation, as `vidpipe evaluate` leaves one."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / "predictions.parquet")
    config = {"classes": CLASSES, "task": task, **more}
    (folder / "config.json").write_text(json.dumps(config))


def boxes(gain: float) -> pd.DataFrame:
    """Two people on three key frames of each of six videos; `gain`: how far a right class stands out."""
    rng = np.random.default_rng(0)
    rows = []
    for frame in range(18):
        for left in (0.1, 0.6):
            label = rng.integers(3)
            p = 0.2 + 0.1 * rng.random(3) + gain * (np.arange(3) == label)
            row = {"id": f"v{frame // 3}@{frame % 3}", "x1": left, "y1": 0.1, "x2": left + 0.3}
            said = {"label": CLASSES[label], "predicted": CLASSES[p.argmax()], "probabilities": p}
            rows.append({**row, "y2": 0.9, "truth": True, **said, "top5": CLASSES})
    return pd.DataFrame(rows)


def test_boxes_by_frame_map_and_each_class_by_its_own(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gain in (("near", 0.03), ("sure", 0.5)):
        leave(in_folder / name, boxes(gain), "detection", scored=["sit", "walk"])
    assert command(monkeypatch, "compare", "near", "sure") == 0
    assert "sure against near, 36 boxes" in capsys.readouterr().out
    folder = in_folder / "results/compare/near-vs-sure"
    (row,) = pd.read_csv(folder / "metrics.csv").to_dict("records")
    assert (row["metric"], row["b"]) == ("frame mAP", 1)
    assert 0 < row["low"] < row["difference"] < row["high"]
    classes = pd.read_csv(folder / "per_class.csv")
    assert list(classes) == ["class", "boxes", "a", "b", "difference"]
    assert set(classes["class"]) == {"sit", "walk"}, "the metric does not count the others"
    assert classes.a.mean() == pytest.approx(row["a"])
    page = (folder / "compare.html").read_text()
    assert "a paired bootstrap over groups" in page
    leave(in_folder / "clips", boxes(0.5), "single_label")
    assert command(monkeypatch, "compare", "near", "clips") == 1
    assert "near is for data.task detection and clips for single_label" in capsys.readouterr().err


def test_stretches_by_temporal_map_as_well(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = boxes(0.5).drop(columns=["x1", "y1", "x2", "y2", "truth"])
    spans["id"] = [f"v{i // 6}@{i % 6}" for i in range(len(spans))]
    true = pd.DataFrame(
        {
            "file": [name.partition("@")[0] for name in spans.id],
            "start_s": [2.0 * (i % 6) for i in range(len(spans))],
            "end_s": [2.0 * (i % 6) + 2 for i in range(len(spans))],
            "label": spans.label,
            "score": 1.0,
        }
    )
    for name, late in (("exact", 0.0), ("late", 0.9)):
        leave(in_folder / name, spans, "single_label")
        found = true.assign(start_s=true.start_s + late, truth=False)
        timeline = pd.concat([true.assign(truth=True), found], ignore_index=True)
        timeline.to_parquet(in_folder / name / "timeline.parquet")
    assert command(monkeypatch, "compare", "late", "exact") == 0
    table = pd.read_csv(in_folder / "results/compare/late-vs-exact/metrics.csv")
    assert list(table.metric) == ["temporal mAP", "top1", "top5", "mean_class_accuracy"]
    assert table.b[0] == 1
    assert table.a[0] == pytest.approx(0.6), "found at three of the five temporal IoUs"
    assert table.difference[1] == 0
    assert "temporal mAP" in capsys.readouterr().out
