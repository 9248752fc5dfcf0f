"""`vidpipe data stats` and `vidpipe data show`: numbers against rows by hand, pictures by their size."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
import torch
from project import PROJECT
from typer.testing import CliRunner

from pipeline.cli.app import app
from vidpipe.data.stats import summarise
from vidpipe.errors import VidpipeError
from vidpipe.video.store import Manifest, write_manifest
from vidpipe.viz.data import plot_contact_sheet, plot_data_stats

CLASSES = ("walk", "$run$ [fast]", "never")


def row(i: int, label: str, split: str, **more: Any) -> dict[str, Any]:
    base = {
        **{"id": f"v{i}", "path": f"v{i}.mp4", "label": label, "split": split, "status": "ok"},
        **{"reason": "", "detail": "", "frames": 20 * (i + 1), "fps": 10.0, "width": 64},
        **{"height": 48 + i, "sha256": str(i), "source_bytes": 1000, "shard": 0, "offset": 0},
    }
    return {**base, "nbytes": 250, **more}


ROWS = [
    row(0, "walk", "train"),
    row(1, "walk", "train"),
    row(2, "walk", "train"),
    row(3, "$run$ [fast]", "train"),
    row(4, "$run$ [fast]", "val"),
    row(5, "never", "train", status="quarantined", reason="missing_file", fps=0.0, frames=0),
]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["data", *arguments])
    if result.exception:
        raise result.exception
    return result.output


def test_the_numbers_are_those_of_the_usable_rows() -> None:
    summary = summarise(Manifest(pd.DataFrame(ROWS), CLASSES, "compact"))
    assert summary["clips"] == {"train": 4, "val": 1}
    assert summary["per_class"] == {
        "walk": {"train": 3, "val": 0},
        "$run$ [fast]": {"train": 1, "val": 1},
        "never": {"train": 0, "val": 0},
    }
    assert summary["balance"]["most"] == {"class": "walk", "clips": 3}
    assert summary["balance"]["least"] == {"class": "never", "clips": 0}
    assert summary["balance"]["ratio"] is None
    assert summary["balance"]["without_training_clips"] == ["never"]
    assert summary["duration_s"] == {"min": 2.0, "median": 6.0, "max": 10.0, "total": 30.0}
    assert summary["height"] == {"min": 48.0, "median": 50.0, "max": 52.0}
    assert (summary["source_bytes"], summary["store_bytes"]) == (5000, 1250)
    assert summary["store_to_source"] == 0.25
    assert summary["quarantined"] == {"missing_file": 1}
    balanced = summarise(Manifest(pd.DataFrame(ROWS[1:4]), CLASSES[:2], "compact"))
    assert balanced["balance"]["ratio"] == 2.0


def test_stats_prints_and_writes_and_with_json_only_prints(tmp_path: Path) -> None:
    write_manifest(tmp_path / "data" / "store", ROWS, CLASSES)
    printed = json.loads(run("stats", "--json", "--out", str(tmp_path)))
    assert not (tmp_path / "results").exists()
    shown = run("stats", "--out", str(tmp_path))
    assert "$run$ [fast]" in shown  # not taken for markup
    assert "missing_file 1" in shown
    written = tmp_path / "results" / "data"
    assert json.loads((written / "stats.json").read_text()) == printed
    assert (written / "stats.png").stat().st_size > 10_000


@pytest.mark.parametrize("classes", [1, 30, 400])
def test_the_picture_is_drawn_for_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    counts = pd.DataFrame(
        {"train": range(classes), "val": 1},
        index=[f"a long name of class ${i}" for i in range(classes)],
    )
    unknown = {"duration": float("nan"), "source_bytes": float("nan")}
    clips = pd.DataFrame(ROWS[:1]).assign(**unknown, nbytes=classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_data_stats(counts, clips, "nothing known but names", tmp_path / "stats.png")
    assert matplotlib.image.imread(tmp_path / "stats.png").shape[1] > 1500


def test_a_contact_sheet_shows_every_frame(tmp_path: Path) -> None:
    """Frames of one colour each: all are found in the picture, also those on a second line."""
    levels = torch.linspace(20, 235, 20).to(torch.uint8)
    video = levels[:, None, None, None].expand(20, 3, 8, 8)
    plot_contact_sheet([("$a_b$", video)], "title", tmp_path / "sheet.png")
    picture = (matplotlib.image.imread(tmp_path / "sheet.png")[..., 0] * 255).round()
    for level in levels.tolist():
        assert (picture == level).sum() > 100
    with pytest.raises(VidpipeError, match="too many for a picture"):
        plot_contact_sheet([("", video[:1])] * 2000, "title", tmp_path / "sheet.png")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rendered clips of two classes in a store."""
    out = tmp_path_factory.mktemp("project")
    settings = [
        "synth.pairs=[horizontal]",
        "synth.clips_per_class=4",
        f"data.root={out}/data/synth",
    ]
    for stage in ("synth", "extract"):
        chosen = [part for text in settings for part in ("--set", text)]
        arguments = ["--params", str(PROJECT / "params.yaml"), *chosen, "--out", str(out)]
        result = CliRunner().invoke(app, [stage, *arguments])
        assert result.exit_code == 0, result.exception
    return out


def show(project: Path, *arguments: str) -> bytes:
    """The picture without its title, which names the epoch."""
    common = ["--params", str(PROJECT / "params.yaml"), "--out", str(project)]
    return matplotlib.image.imread(run("show", *arguments, *common).strip())[100:].tobytes()


def test_show_is_a_function_of_seed_and_epoch(project: Path) -> None:
    first = show(project, "--clips", "2")
    assert show(project, "--clips", "2") == first
    assert show(project, "--clips", "2", "--epoch", "1") != first
    assert show(project, "--clips", "2", "--seed", "1") != first


def test_show_draws_a_strip_a_view_and_filters(project: Path) -> None:
    show(project, "--clips", "1", "--split", "val")
    three = matplotlib.image.imread(project / "results/data/clips-val.png")
    show(project, "--clips", "1", "--split", "val", "--set", "evaluate.spatial_crops=1")
    one = matplotlib.image.imread(project / "results/data/clips-val.png")
    assert three.shape[0] > 2 * one.shape[0]
    left = show(project, "--clips", "9", "--class", "move_left")
    assert left != show(project, "--clips", "9", "--class", "move_right")
    with pytest.raises(
        VidpipeError, match="--class move_lefd: no such class; nearest is move_left"
    ):
        show(project, "--class", "move_lefd")
    with pytest.raises(VidpipeError, match="--split test: expected train or val"):
        show(project, "--split", "test")
