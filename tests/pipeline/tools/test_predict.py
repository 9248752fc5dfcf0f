"""`vidpipe predict`: what evaluation says of the same frames, damaged files skipped, here and on Ray."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bad_decoders import breaks_off, hangs_or_dies
from clips import moving
from small_models import (
    backbone_file,
    two_models_and_a_package,
)
from typer.testing import CliRunner
from videos import good_and_bad_videos, write_video

from pipeline.cli.app import app
from pipeline.stages import extract
from pipeline.tools import predict
from vidpipe.backbones.config import BackboneConfig
from vidpipe.data.config import DataConfig
from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.evaluate import Evaluator
from vidpipe.evaluation.evaluate import predict as evaluate
from vidpipe.inference import segments
from vidpipe.trained import predictor
from vidpipe.trained.package import open_model
from vidpipe.video.config import ExtractConfig
from vidpipe.video.store import FrameStore

EXTRACT = ExtractConfig(short_side=36, min_frames=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models_and_a_package(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_and_bad_videos(tmp_path_factory.mktemp("videos"))


def job(*folders: Path, **options: Any) -> predict.Job:
    return predict.Job(folders=folders, workers=options.pop("workers", 1), **options)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def recording(model: Path, target: Path, **frames: Any) -> Path:
    """A copy of the folder `model` that says what it was made for."""
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    card = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**card, "extract": frames}))
    return target


@pytest.mark.parametrize("crops", [1, 3])
def test_predictions_are_those_of_evaluate_but_for_the_stores_encoding(
    folder: Path, tmp_path: Path, crops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's frames are near those decoded; given these, evaluation gives what predict gives."""
    root = tmp_path / "videos"
    for label in ("left", "right", "up"):
        (root / label).mkdir(parents=True)
        for i in range(2):
            frames = np.roll(moving(30 + i), 7 * i + 3 * len(label), 2)
            grey = frames[..., :1].repeat(3, -1)  # 4:2:0 halves the resolution of colour
            write_video(root / label / f"{i}.mp4", grey, crf="10")
    data = DataConfig(root=str(root), val_fraction=0.5)
    config = ExtractConfig(short_side=36, crf=1, num_workers=1)
    extract.run(data, config, tmp_path / "store")
    trained = open_model(folder / "one" / "package")
    store = FrameStore(tmp_path / "store")
    views = ViewSet(
        Clips(store, "val", trained.classes), trained.sampling, trained.transform, 1, crops
    )
    normalisation = (trained.backbone.mean, trained.backbone.std)
    evaluator = Evaluator(trained.model, views, normalisation, use_of_time=False, batch_size=4)
    evaluated = evaluate(evaluator)
    stored = store.read

    def as_decoded(row: int, indices: list[int]) -> np.ndarray:
        frames = segments.decode(root / f"{store.rows.id[row]}.mp4", config)[1]
        decoded = np.stack(list(frames))[indices]
        # Of pixels: this random model's probabilities may part by a quarter over such a difference.
        assert np.abs(decoded.astype(int) - stored(row, indices)).mean() < 1
        return decoded

    monkeypatch.setattr(store, "read", as_decoded)
    expected = evaluate(evaluator).probabilities
    package = recording(folder / "one" / "package", tmp_path / "package", short_side=36, fps=None)
    opened = job(package, spatial_crops=crops).open()
    with predict.Decoders(opened) as decoders:
        files = [str(root / f"{clip}.mp4") for clip in evaluated.ids]
        found = {r["path"]: r for r in opened.rows(files, decoders.guards, 3)}
    p = torch.tensor([found[file]["all_probabilities"] for file in files])
    torch.testing.assert_close(p, expected, atol=1e-5, rtol=0)
    assert p.max() - p.min() > 0.2, "a model that says the same of everything would show nothing"


def test_the_short_side_and_rate_come_from_the_models_folder(folder: Path, tmp_path: Path) -> None:
    package = folder / "one" / "package"
    a = recording(package, tmp_path / "a", short_side=48, fps=5.0)
    b = recording(package, tmp_path / "b", short_side=64, fps=None)
    opened = job(a).open().extract
    assert (opened.short_side, opened.fps) == (48, 5.0)
    assert job(package).open().extract.short_side == round(32 * 256 / 224)
    with pytest.raises(
        VidpipeError, match=r"b: made for frames of short side 64, any .*a for .*48"
    ):
        job(a, b).open()


# -- sliding windows ------------------------------------------------------------------------------


def test_rows_of_windows_and_their_mean(folder: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    window = job(folder / "one" / "package", window_s=0.4)
    predict.run(window, [str(videos / "good0.mp4")], out=out)
    rows = pq.read_table(out).to_pylist()
    assert [row["part"] for row in rows] == ["segment"] * 3 + ["video"]
    assert [(r["start_s"], r["end_s"]) for r in rows] == [
        (0, 0.4),
        (0.4, 0.8),
        (0.8, 1.2),
        (0, 1.2),
    ]
    each = np.array([row["all_probabilities"] for row in rows])
    np.testing.assert_allclose(each[3], each[:3].mean(0), atol=1e-6)
    assert np.ptp(each[:3], 0).max() > 0.01


def test_a_video_that_breaks_off_keeps_its_segments_and_gets_no_mean(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    window = job(folder / "one" / "package", window_s=0.4)
    files = [str(videos / "good0.mp4"), str(videos / "good1.mp4")]
    predict.run(window, files, out=out, work=breaks_off)
    found = [(Path(r["path"]).stem, r["part"], r["reason"]) for r in rows_of(out)]
    assert found[:2] == [("good0", "segment", ""), ("good0", "video", "corrupt_frames")]
    assert [part for stem, part, _ in found if stem == "good1"] == ["segment"] * 4 + ["video"]


# -- damaged files --------------------------------------------------------------------------------


def test_damaged_files_in_a_folder_are_reported_and_skipped(
    folder: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself, on a folder and on a file that is not there; both formats say the same."""
    both = ["--model", str(folder / "one" / "package"), "--model", str(folder / "two")]
    arguments = ["predict", str(videos), str(videos / "absent.mp4"), *both, "--top", "2"]
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    for out in (lines, table):
        done = CliRunner().invoke(app, [*arguments, "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0
        assert "3 of 7 videos predicted; 4 skipped" in done.stderr
    rows = rows_of(lines)
    bad = {Path(r["path"]).name: r["reason"] for r in rows if r["status"] == "quarantined"}
    assert bad == {
        "cut.mp4": "truncated",
        "text.mp4": "undecodable",
        "empty.mp4": "undecodable",
        "absent.mp4": "missing_file",
    }
    good = [r for r in rows if r["status"] == "ok"]
    assert sorted((Path(r["path"]).name, r["model"]) for r in good) == [
        (f"good{i}.mp4", model) for i in range(3) for model in ("one", "two")
    ]
    for row in good:
        assert len(row["labels"]) == len(row["probabilities"]) == 2
        assert set(row["labels"]) <= (
            {"left", "right", "up"} if row["model"] == "one" else {"a", "b"}
        )
        assert row["probabilities"][0] >= row["probabilities"][1]

    def key(row: dict[str, Any]) -> tuple[str, str]:
        return row["path"], row["model"]

    stored = pq.read_table(table)
    classes = json.loads(stored.schema.metadata[b"vidpipe.predictions.classes"])
    assert classes == {"one": ["left", "right", "up"], "two": ["a", "b"]}
    for a, b in zip(sorted(rows, key=key), sorted(stored.to_pylist(), key=key), strict=True):
        every = b.pop("all_probabilities")
        assert (b.pop("box"), b.pop("box_score")) == (None, None), "of whole videos"
        np.testing.assert_allclose(a.pop("probabilities"), b.pop("probabilities"), atol=1e-6)
        assert a == b
        assert len(every) == len(classes.get(a["model"], []))


def test_where_no_input_can_be_read_one_line_says_so(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    with pytest.raises(VidpipeError, match=r"none of 2 inputs could be predicted \(.*truncated 1"):
        predict.run(
            job(folder / "two"), [str(videos / "cut.mp4"), str(videos / "text.mp4")], out=out
        )
    assert [row["reason"] for row in rows_of(out)] == ["truncated", "undecodable"]


def test_a_decoder_that_hangs_or_dies_costs_its_video(
    folder: Path, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    names = ["good0", "good1", "text", "good2", "good2"]
    begun = time.monotonic()
    predict.run(
        job(folder / "one" / "package", timeout_s=3, workers=2),
        [str(videos / f"{name}.mp4") for name in names],
        out=out,
        work=hangs_or_dies,
    )
    assert time.monotonic() - begun < 120
    found = sorted((Path(r["path"]).stem, r["reason"], r["detail"]) for r in rows_of(out))
    assert [f[:2] for f in found] == [
        ("good0", "timeout"),
        ("good1", "crashed"),
        ("good2", ""),
        ("good2", ""),
        ("text", "undecodable"),
    ]
    assert "exit code -11" in found[1][2]
    assert "RuntimeError: a surprise" in found[4][2]


# -- several models -------------------------------------------------------------------------------


def test_an_adapter_of_another_backbone_is_refused_with_both_hashes(
    folder: Path, tmp_path: Path
) -> None:
    other = backbone_file(tmp_path / "other.safetensors", seed=2)
    sums = [json.loads((folder / "two" / "config.json").read_text())["backbone"]["weights_sha256"]]
    sums.append(
        predictor.load_backbone(
            BackboneConfig(name="vit_tiny_patch16_224", weights=str(other)), 32
        ).sha256
    )
    message = rf"two: trained on weights {sums[0][:12]}, but .*other.safetensors has {sums[1][:12]}"
    with pytest.raises(VidpipeError, match=message) as caught:
        job(folder / "two", weights=str(other)).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal_clips": 3}, r"temporal_clips 3: model one samples uniformly"),
        ({"spatial_crops": 2}, r"--spatial-crops 2: expected 1 or 3"),
        ({"step_s": 1}, r"--step 1: only with --window"),
        ({"window_s": 1, "step_s": 2}, r"--step 2: more than --window 1"),
        ({"window_s": 0}, r"--window 0: expected seconds above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VidpipeError, match=message):
        job(folder / "two", folder / "one" / "adapter", **options).open()


def test_a_corrupt_package_is_refused_before_any_video_is_read(
    folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "package"
    broken.mkdir()
    for file in (folder / "one" / "package").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:5000])
    with pytest.raises(VidpipeError, match=r"model.safetensors: not a readable safetensors file"):
        predict.run(job(broken), ["absent.mp4"])
    (broken / "config.json").write_text("{}")
    with pytest.raises(VidpipeError, match=r"config.json: format None version None, expected"):
        predict.run(job(broken), ["absent.mp4"])


# -- scale ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_ray_data_gives_the_same_rows(
    folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    outs = [tmp_path / "here.parquet", tmp_path / "ray.parquet"]
    for out, ray in zip(outs, ("none", "local"), strict=True):
        predict.run(job(folder / "one" / "package"), [str(videos)], out=out, ray=ray)
    here, there = (
        sorted(pq.read_table(out).to_pylist(), key=lambda row: row["path"]) for out in outs
    )
    assert len(here) == 6
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(
            a.pop("all_probabilities"), b.pop("all_probabilities"), atol=1e-5
        )
        np.testing.assert_allclose(a.pop("probabilities"), b.pop("probabilities"), atol=1e-5)
        assert a == b


def test_more_inputs_than_the_limit_go_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert predict._address(None, many=False) is None
    assert predict._address(None, many=True) == "local"
    assert predict._address("none", many=True) is None
    assert predict._address("host:1", many=False) == "host:1"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert predict._address(None, many=False) == "auto"
