"""Segments from the table to the timeline: train, evaluate, `predict --timeline` in every form."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from project import PROJECT, command

from pipeline.tools.predict_timeline import edl, srt, vtt
from vidpipe.config.overlay import read_yaml
from vidpipe.trained.package import open_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Motions in turn, rendered, extracted, trained for an epoch, evaluated."""
    folder = tmp_path_factory.mktemp("turns")
    raw = read_yaml(PROJECT / "params.yaml")
    raw["backbone"] |= {"weights": str(PROJECT / raw["backbone"]["weights"])}
    raw["train"] |= {"epochs": 1, "warmup_epochs": 0, "threads": 1, "batch_size": 8}
    raw["synth"] |= {"scene": "turns", "clips_per_class": 3, "fps": 8, "size_px": [48, 48]}
    raw["synth"] |= {"pairs": ["horizontal", "scale"], "duration_s": [1.0, 1.2]}
    raw["data"] |= {"layout": "segments", "annotations": "spans.csv", "background": "still"}
    raw["extract"] |= {"short_side": 48, "num_workers": 1}
    raw["sampling"] |= {"num_frames": 4}
    raw["evaluate"] = {"timeline": {"window_s": 0.8, "step_s": 0.4}}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (("synth",), ("extract",), ("train",), ("evaluate",)):
            method = ("--method", "linear_probe") if words[0] in ("train", "evaluate") else ()
            assert command(patch, *words, *method) == 0
    # After one epoch it finds that nothing ever moves: without a background, that is a class, too.
    shutil.copytree(folder / "models/linear_probe/adapter", folder / "plain")
    card = json.loads((folder / "plain/config.json").read_text())
    (folder / "plain/config.json").write_text(
        json.dumps({key: value for key, value in card.items() if key != "background"})
    )
    return folder


def test_an_evaluation_has_temporal_map_and_frame_accuracy(trained: Path) -> None:
    found = json.loads((trained / "results/linear_probe/eval.json").read_text())
    assert {f"temporal_map_{t}" for t in (0.3, 0.4, 0.5, 0.6, 0.7)} <= found.keys()
    assert 0 <= found["temporal_map"] <= 1
    assert 0 < found["frame_accuracy"] <= 1
    table = pd.read_parquet(trained / "models/linear_probe/evaluation/timeline.parquet")
    spans = pd.read_csv(trained / "data/synth/spans.csv").query("split == 'val'")
    truth = table[table.truth].sort_values(["file", "start_s"])
    assert (
        truth.start_s.round(3).tolist()
        == spans.sort_values(["path", "start"]).start.round(3).tolist()
    )
    assert "still" not in set(table.label)


def test_the_report_has_them_beside_the_spans_top1(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((trained / "results/linear_probe/eval.json").read_text())
    monkeypatch.chdir(trained)
    assert command(monkeypatch, "report") == 0
    page = (trained / "results/report.md").read_text()
    assert page.startswith("| method | temporal mAP % | frames right % | top1 % |")
    assert f"| {100 * found['temporal_map']:.1f} | {100 * found['frame_accuracy']:.1f} |" in page
    assert "mean over temporal IoUs of 0.3 to 0.7" in page


def test_a_model_knows_its_window_and_background(trained: Path) -> None:
    model = open_model(trained / "models/linear_probe/adapter")
    spans = pd.read_csv(trained / "data/synth/spans.csv").query("split == 'train'")
    assert model.window_s == pytest.approx((spans.end - spans.start).median(), abs=1e-6)
    assert model.background == "still"
    assert model.classes[-1] == "still"


def predict(trained: Path, patch: pytest.MonkeyPatch, *words: str) -> int:
    patch.chdir(trained)
    model = ("--model", "plain", "--workers", "1")
    return command(patch, "predict", *words, "--timeline", *model)


CLIP = "data/synth/clips/scene_0000_forwards.mp4"


def test_every_form_says_the_same(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("t.json", "t.jsonl", "t.parquet", "t.vtt", "t.srt", "t.edl"):
        assert predict(trained, monkeypatch, CLIP, "--threshold", "0", "--out", name) == 0
    rows = json.loads((trained / "t.json").read_text())
    assert rows
    for one, other in pairwise(rows):
        assert one["end"] <= other["start"]
    assert {row["label"] for row in rows} <= {"move_left", "move_right", "grow", "shrink", "still"}
    lines = (trained / "t.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert pq.read_table(trained / "t.parquet").to_pylist() == rows
    for name in ("t.vtt", "t.srt"):
        text = (trained / name).read_text()
        assert len(re.findall(r"\d\d:\d\d:\d\d[.,]\d{3} --> ", text)) == len(rows)
    assert (trained / "t.edl").read_text().count("AX       V     C") == len(rows)


def test_smoothing_and_a_least_length_leave_fewer_stretches(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(trained, monkeypatch, CLIP, "--out", "many.json", "--step", "0.2") == 0
    words = ("--smooth", "5", "--min-length", "0.5", "--step", "0.2")
    assert predict(trained, monkeypatch, CLIP, "--out", "few.json", *words) == 0
    many, few = (json.loads((trained / f"{n}.json").read_text()) for n in ("many", "few"))
    assert len(few) <= len(many)
    assert all(row["end"] - row["start"] >= 0.499 for row in few)


def test_mistakes_are_one_line_and_bad_files_are_rows(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = CLIP.replace("forwards", "backwards")
    assert predict(trained, monkeypatch, CLIP, other, "--format", "vtt") == 1
    assert "is of one video and one model; there are 2" in capsys.readouterr().err.splitlines()[-1]
    assert predict(trained, monkeypatch, CLIP, "--format", "mp4") == 1
    assert "expected table, json" in capsys.readouterr().err.splitlines()[-1]
    (trained / "bad.mp4").write_bytes(b"no video")
    assert predict(trained, monkeypatch, CLIP, "bad.mp4", "--out", "both.json") == 0
    rows = json.loads((trained / "both.json").read_text())
    assert [row["path"] for row in rows if row["reason"]] == ["bad.mp4"]


ROWS = [
    {"path": "a/b.mp4", "start": 0.0, "end": 1.25, "label": "run --> <b>", "score": 0.91},
    {"path": "a/b.mp4", "start": 3661.5, "end": 3662.0, "label": "sit\ndown", "score": 0.5},
]


def test_what_players_and_editors_read() -> None:
    assert vtt(ROWS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.250\nrun --&gt; &lt;b&gt; 91%\n\n"
        "01:01:01.500 --> 01:01:02.000\nsit down 50%\n"
    )
    assert srt(ROWS).startswith("1\n00:00:00,000 --> 00:00:01,250\nrun --&gt; &lt;b&gt;\n\n2\n")
    lines = edl(ROWS, 25).splitlines()
    assert (
        lines[3] == "001  AX       V     C        00:00:00:00 00:00:01:06 00:00:00:00 00:00:01:06"
    )
    assert (
        lines[6] == "002  AX       V     C        01:01:01:13 01:01:02:00 00:00:01:06 00:00:01:18"
    )
    assert "* FROM CLIP NAME: b.mp4" in lines
