"""`vidpipe data check` on real files: planted copies are found, drawn, written, and an exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
from one_camera import filmed
from project import PROJECT
from typer.testing import CliRunner
from videos import write_video

from pipeline.cli.app import app

FILMS = [filmed(seed, 36) for seed in range(6)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six films of one camera by three people, and a mirrored, a trimmed, a poor and an equal copy."""
    root = tmp_path_factory.mktemp("videos")
    rows = ["path,label,split,who"]

    def add(name: str, film, label: str, split: str, who: str, **options: str) -> None:
        write_video(root / name, film, **options)
        rows.append(f"{name},{label},{split},{who}")

    for i, film in enumerate(FILMS):
        add(
            f"{i}.mp4",
            film,
            "ab"[i % 2],
            "train" if i < 4 else "val",
            ("ann", "bob", "eve")[i // 2],
        )
    add("mirrored.mp4", FILMS[0][:, :, ::-1], "a", "val", "eve")
    add("trimmed.mp4", FILMS[1][8:], "a", "train", "ann")
    add("poor.mp4", FILMS[2].repeat(2, 1).repeat(2, 2), "a", "train", "eve", crf="34")
    shutil.copy(root / "3.mp4", root / "equal.mp4")
    rows.append("equal.mp4,a,train,bob")
    (root / "index.csv").write_text("\n".join(rows) + "\n")
    return root


EXPECTED = {
    ("copy_across_splits", "0", "mirrored"),
    ("copy_across_groups", "2", "poor"),
    ("label_conflict", "1", "trimmed"),
    ("copy_within_split", "1", "trimmed"),
    ("label_conflict", "3", "equal"),
    ("same_bytes", "3", "equal"),
    ("group_across_splits", "eve", None),
}


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def options(videos: Path, out: Path) -> list[str]:
    settings = ("data.annotations=index.csv", "data.group=who", "extract.max_bad_fraction=0.5")
    return [
        *("--params", str(PROJECT / "params.yaml"), "--data-root", str(videos), "--out", str(out)),
        *(part for text in settings for part in ("--set", text)),
    ]


def test_copies_among_videos_are_found_printed_and_drawn(videos: Path, tmp_path: Path) -> None:
    code, shown = run("data", "check", "--videos", "--strict", *options(videos, tmp_path))
    assert code == 1
    assert "copy_across_splits" in shown
    found = json.loads((tmp_path / "results/data/check.json").read_text())
    assert (found["clips"], found["groups"]) == (9, 3)
    assert {(f["kind"], f["first"], f.get("second")) for f in found["findings"]} == EXPECTED
    (mirrored,) = (f for f in found["findings"] if f["kind"] == "copy_across_splits")
    assert mirrored["mirrored"]
    table = pd.read_csv(tmp_path / "results/data/check.csv")
    assert len(table) == len(EXPECTED)
    assert table.offset_s[table.second == "trimmed"].iloc[0] == pytest.approx(8 / 25, abs=0.02)
    picture = matplotlib.image.imread(tmp_path / "results/data/check.png")
    assert picture.shape[0] > 6 * 60  # two strips a pair
    assert not (tmp_path / "data" / ".check").exists()


def test_a_store_is_checked_alike_and_a_clean_one_is_no_failure(
    videos: Path, tmp_path: Path
) -> None:
    given = options(videos, tmp_path)
    assert run("extract", *given)[0] == 0
    code, shown = run("data", "check", "--json", *given)  # not strict
    assert code == 0
    found = json.loads(shown[shown.index("{") :])
    assert {(f["kind"], f["first"], f.get("second")) for f in found["findings"]} == EXPECTED
    assert not (tmp_path / "results/data").exists()
    # Without a group each video is one, and what is left of the rest is put right by the table.
    rows = (videos / "index.csv").read_text().splitlines()
    clean = [row for row in rows if row[0] in "p012345" and not row.startswith("poor")]
    (videos / "clean.csv").write_text("\n".join(clean) + "\n")
    given = [*given, "--set", "data.annotations=clean.csv", "--set", "data.group=null"]
    code, shown = run("data", "check", "--videos", "--strict", *given)
    assert code == 0
    found = json.loads((tmp_path / "results/data/check.json").read_text())
    assert found["findings"] == []
    assert not (tmp_path / "results/data/check.png").exists()


def test_without_a_store_the_line_says_what_to_do(tmp_path: Path) -> None:
    from vidpipe.errors import VidpipeError

    with pytest.raises(VidpipeError, match="no such file; run `vidpipe extract` first"):
        run("data", "check", "--params", str(PROJECT / "params.yaml"), "--out", str(tmp_path))
