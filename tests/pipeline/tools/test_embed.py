"""`vidpipe embed`: the features of `Classifier.features`, with ids, from videos and from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from small_models import T, backbone_file, save_tiny_adapter, two_models_and_a_package
from small_store import small_store
from typer.testing import CliRunner
from videos import good_and_bad_videos

import vidpipe
from pipeline.cli.app import app
from pipeline.tools import embed
from vidpipe.errors import VidpipeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models_and_a_package(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_and_bad_videos(tmp_path_factory.mktemp("videos"))


def job(folder: Path, **options: Any) -> embed.EmbedJob:
    return embed.EmbedJob(folders=(folder,), workers=1, **options)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def test_rows_are_the_classifiers_features_and_damaged_files_have_a_reason(
    folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "ROWS", 2)  # row groups and shards of two
    model = folder / "one" / "adapter"
    embed.run(job(model, frames=True), [str(videos)], tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    good = [row for row in rows if row["status"] == "ok"]
    assert len(good) >= 2
    assert all(row["reason"] and row["feature"] == [] for row in rows if row not in good)
    with vidpipe.load(model) as classifier:
        expected = classifier.features([row["path"] for row in good])
        for row, own in zip(good, expected, strict=True):
            np.testing.assert_array_equal(np.float32(row["feature"]), own.numpy())
            assert np.shape(row["frames"]) == (T, classifier.model.width)
    # The same as shards.
    embed.run(job(model, frames=True), [str(videos)], tmp_path / "shards")
    index = rows_of(tmp_path / "shards" / "index.parquet")
    assert [row["path"] for row in index] == [row["path"] for row in rows]
    for found, row in zip(index, rows, strict=True):
        if row["status"] != "ok":
            assert (found["shard"], found["row"]) == (-1, -1)
            continue
        shard = load_file(tmp_path / "shards" / f"features-{found['shard']:05d}.safetensors")
        np.testing.assert_array_equal(shard["feature"][found["row"]], np.float32(row["feature"]))
        np.testing.assert_array_equal(
            shard["frames"][found["frames_row"]], np.float32(row["frames"])
        )


def test_windows_have_a_row_each_and_the_video_their_mean(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "w.parquet"
    one = next(str(p) for p in sorted(videos.rglob("*.mp4")) if vidpipe_reads(folder, p))
    embed.run(job(folder / "one" / "adapter", frames=True, window_s=0.4), [one], out)
    *windows, video = rows_of(out)
    assert len(windows) > 1
    assert {row["part"] for row in windows} == {"segment"}
    assert all(len(row["frames"]) == T for row in windows)
    assert video["frames"] == []
    mean = np.mean([row["feature"] for row in windows], 0)
    np.testing.assert_allclose(video["feature"], mean, atol=1e-6)


def vidpipe_reads(folder: Path, path: Path) -> bool:
    with vidpipe.load(folder / "one" / "adapter") as classifier:
        try:
            classifier.features(path)
        except VidpipeError:
            return False
        return True


def test_the_stores_clips_have_their_ids_labels_and_splits(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    frames = small_store(store, 6)
    model = save_tiny_adapter(tmp_path / "m", backbone_file(tmp_path / "vit.safetensors"))
    out = tmp_path / "store.parquet"
    words = ("embed", "--model", str(model), "--store", str(store), "--out", str(out))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [(r["path"], r["label"], r["split"]) for r in rows] == list(
        frames.rows[["id", "label", "split"]].itertuples(index=False, name=None)
    )
    assert all(row["frames"] == [] for row in rows)
    with vidpipe.load(model) as classifier:
        decoded = torch.from_numpy(frames.read(3, range(20))).permute(0, 3, 1, 2)
        own = classifier.features(decoded).numpy()
    np.testing.assert_allclose(np.float32(rows[3]["feature"]), own, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected inputs or --store FOLDER"),
        (("a.mp4", "--store", "s"), "expected inputs or --store FOLDER"),
        (("--store", "s", "--window", "1"), "a clip of --store is one"),
        (("a.mp4", "--out", "x.csv"), "expected a name ending in .parquet"),
        (("a.mp4", "--out", "full"), "there is something else in this folder"),
        (("a.mp4", "--out", "x.parquet"), "none of 1 input could be embedded"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    folder: Path, in_folder: Path, words: tuple[str, ...], message: str
) -> None:
    (in_folder / "full").mkdir()
    (in_folder / "full" / "letter.txt").touch()
    result = CliRunner().invoke(
        app, ("embed", "--model", str(folder / "one" / "adapter"), *words), standalone_mode=False
    )
    assert isinstance(result.exception, VidpipeError)
    assert message in str(result.exception)
    written = list(in_folder.glob("x*"))  # the rows that say why
    assert [row["reason"] for path in written for row in rows_of(path)] == (
        ["missing_file"] if "none of" in message else []
    )
