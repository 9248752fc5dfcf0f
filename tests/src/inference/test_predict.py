"""Prediction on raw videos: the frames of evaluation, damaged files skipped, bounded memory."""

from __future__ import annotations

import http.server
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bad_decoders import breaks_off, hangs_or_dies
from clips import moving
from small_models import DENSE, UNIFORM, backbone_file, save_tiny_adapter, save_tiny_package
from typer.testing import CliRunner
from videos import write_video

from pipeline.cli.app import app
from pipeline.stages import extract
from pipeline.tools import predict
from pipeline.tools.prediction_inputs import sources
from vidpipe.backbones.config import BackboneConfig
from vidpipe.data.config import DataConfig, SamplingConfig
from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.data.sampling import test_indices as middles
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.evaluate import Evaluator
from vidpipe.evaluation.evaluate import predict as evaluate
from vidpipe.inference import fetch, segments
from vidpipe.inference.segments import Request
from vidpipe.trained import predictor
from vidpipe.trained.package import open_model
from vidpipe.trained.predictor import Predictor, open_models
from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError
from vidpipe.video.store import FrameStore

EXTRACT = ExtractConfig(short_side=36, min_frames=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters `one` and `two` (other classes, dense) on one backbone, a package of `one`."""
    root = tmp_path_factory.mktemp("models")
    weights = backbone_file(root / "vit.safetensors")
    save_tiny_adapter(root / "one" / "adapter", weights)
    save_tiny_adapter(root / "two", weights, "aim", ("a", "b"), DENSE, seed=3)
    save_tiny_package(root / "one" / "package", weights)
    return root


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good clips and three that are not, of which one is in a folder of its own."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_video(root / f"good{i}.mp4", np.roll(moving(30 + 7 * i), 9 * i, 2))
    (root / "cut.mp4").write_bytes((root / "good0.mp4").read_bytes()[:-700])
    (root / "text.mp4").write_text("not a video")
    (root / "deep").mkdir()
    (root / "deep" / "empty.mp4").write_bytes(b"")
    return root


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


# -- the frames that training saw -----------------------------------------------------------------


def test_a_segment_holds_the_frames_that_evaluation_takes(videos: Path) -> None:
    """Every frame of the file, by the same decoder; the indices of evaluation, for two samplings."""
    path = videos / "good1.mp4"
    request = Request(EXTRACT, (UNIFORM, DENSE), temporal_clips=2)
    (segment,) = segments.segments(str(path), request)
    _, frames = segments.decode(path, EXTRACT)
    every = np.stack(list(frames))
    assert (segment.start_s, segment.end_s) == (0.0, 37 / 25)
    for sampling, positions in zip((UNIFORM, DENSE), segment.positions, strict=True):
        expected = every[middles(37, sampling, 2)]
        np.testing.assert_array_equal(segment.frames[positions], expected)
    assert len(np.unique(segment.frames, axis=0)) == len(segment.frames) < 4 + 2 * 4, "each once"


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


@pytest.mark.parametrize(
    ("frames", "window", "step", "expected"),
    [
        (30, 0.4, 0.4, [(0, 10), (10, 20), (20, 30)]),
        (34, 0.4, 0.4, [(0, 10), (10, 20), (20, 30), (24, 34)]),
        (27, 0.4, 0.2, [(0, 10), (5, 15), (10, 20), (15, 25), (17, 27)]),
        (7, 0.4, 0.4, [(0, 7)]),
        (30, 40, 40, [(0, 30)]),
        (6, 0.01, 0.01, [(i, i + 1) for i in range(6)]),
    ],
)
def test_windows_cover_the_video(
    tmp_path: Path, frames: int, window: float, step: float, expected: list[tuple[int, int]]
) -> None:
    path = write_video(tmp_path / "v.mp4", moving(frames))
    every = np.stack(list(segments.decode(path, EXTRACT)[1]))
    request = Request(EXTRACT, (UNIFORM, DENSE), 1, window, step)
    found = list(segments.segments(str(path), request))
    assert [(round(s.start_s * 25), round(s.end_s * 25)) for s in found] == expected
    for segment, (start, end) in zip(found, expected, strict=True):
        for sampling, positions in zip((UNIFORM, DENSE), segment.positions, strict=True):
            wanted = start + middles(end - start, sampling, 1)
            np.testing.assert_array_equal(segment.frames[positions], every[wanted])


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


def _fake_decode(frames: int, alive: list[int]) -> Any:
    """Frames that know how many of them are alive; each is as large as one of Full HD, or says so."""

    class Counted(np.ndarray):
        nbytes = 1920 * 1080 * 3  # type: ignore[assignment]

        def __del__(self) -> None:
            alive[0] -= 1

    def decode(path: Path, config: ExtractConfig) -> tuple[Fraction, Iterator[Any]]:
        def generate() -> Iterator[Any]:
            for i in range(frames):
                alive[0] += 1
                alive[1] = max(alive)
                yield np.full((2, 2, 3), i % 251, np.uint8).view(Counted)

        return Fraction(25), generate()

    return decode


@pytest.mark.parametrize(("window", "most"), [(2.0, 60), (60.0, 60), (None, 60)])
def test_memory_does_not_grow_with_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: float | None, most: int
) -> None:
    """Of 20,000 frames a few are held at a time, and the right ones are found, if need be again."""
    path = tmp_path / "long.mp4"
    path.touch()
    alive = [0, 0]
    monkeypatch.setattr(segments, "decode", _fake_decode(20_000, alive))
    count = 0
    for segment in segments.segments(str(path), Request(EXTRACT, (UNIFORM,), 1, window)):
        start, end = round(segment.start_s * 25), round(segment.end_s * 25)
        wanted = start + middles(end - start, UNIFORM, 1)[0]
        assert segment.frames[segment.positions[0][0], 0, 0, 0].tolist() == (wanted % 251).tolist()
        count += 1
    assert count == (1 if window is None else -(-20_000 // round(window * 25)))
    assert alive[1] < most


@pytest.mark.parametrize("window", [0.4, None])
def test_a_segment_past_the_memory_of_one_is_refused(
    videos: Path, monkeypatch: pytest.MonkeyPatch, window: float | None
) -> None:
    request = Request(EXTRACT, (UNIFORM,), 1, window)
    frame = 48 * 36 * 3
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * frame)
    assert list(segments.segments(str(videos / "good0.mp4"), request))
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4 * frame - 1)
    with pytest.raises(QuarantineError, match=r"too_large: a segment has 4 frames of 48x36 pixels"):
        list(segments.segments(str(videos / "good0.mp4"), request))


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


def test_results_nobody_waits_for_do_not_come_with_the_next_video(
    folder: Path, videos: Path
) -> None:
    with segments.decoders(Request(EXTRACT, (UNIFORM,), 1, 0.2)) as guards:
        first = guards.run([str(videos / "good0.mp4")])
        next(first)
        first.close()
        found = [event.result for event in guards.run([str(videos / "good1.mp4")])]
    starts = [round(25 * segment.start_s) for segment in found[:-1]]
    assert starts == [0, 5, 10, 15, 20, 25, 30, 32]
    assert found[-1] is None


# -- several models -------------------------------------------------------------------------------


def test_adapters_of_one_backbone_load_it_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    original = predictor.load_backbone
    monkeypatch.setattr(
        predictor, "load_backbone", lambda *args: loads.append(args) or original(*args)
    )
    opened = open_models([folder / "one" / "adapter", folder / "two"])
    assert len(loads) == 1
    one, two = (trained.model for trained in opened.values())
    assert one.vit.blocks[1].attn.qkv.weight is two.vit.blocks[1].attn.qkv.weight
    for path, trained in zip((folder / "one" / "adapter", folder / "two"), opened.values()):
        x = torch.randn(1, 3, 4, 32, 32)
        assert torch.equal(trained.model(x), open_model(path).model(x))
    with pytest.raises(VidpipeError, match="given twice"):
        open_models([folder / "two", folder / "two"])


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


# -- inputs ---------------------------------------------------------------------------------------


def test_inputs_of_every_kind(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["cut.mp4", "deep/empty.mp4", "good0.mp4", "good1.mp4", "good2.mp4", "text.mp4"]
    assert list(sources([str(videos)])) == [str(videos / name) for name in names]
    good = [str(videos / f"good{i}.mp4") for i in range(3)]
    assert list(sources([str(videos / "good*.mp4")])) == good
    assert list(sources([str(videos / "**" / "e*.mp4")])) == [str(videos / "deep" / "empty.mp4")]
    odd = tmp_path / "v[1].mp4"
    odd.touch()
    assert list(sources([str(odd)])) == [str(odd)], "a file's name is no pattern"
    listing = tmp_path / "list.txt"
    listing.write_text(f"# mine\n{good[0]}\n\n  https://example.org/a.mp4 \n")
    expected = [good[0], "https://example.org/a.mp4"]
    assert list(sources([str(listing)])) == expected
    assert list(sources([f"@{listing}", "https://b"])) == [*expected, "https://b"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{good[1]}\n"))
    assert list(sources(["-", "absent.mp4"])) == [good[1], "absent.mp4"]
    for argument, message in [
        (str(tmp_path / "no*.mp4"), "no file matches"),
        ("@nowhere", "nowhere: expected a list of paths, one a line: No such file"),
    ]:
        with pytest.raises(VidpipeError, match=message):
            list(sources([argument]))
    (tmp_path / "none").mkdir()
    with pytest.raises(VidpipeError, match="none: no videos in this folder"):
        list(sources([str(tmp_path / "none")]))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address(videos: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(videos))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with closing(server.socket):
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_are_fetched_within_limits_and_leave_nothing(
    videos: Path, address: str, tmp_path: Path
) -> None:
    request = Request(EXTRACT, (UNIFORM,), scratch=tmp_path)
    (there,) = segments.segments(f"{address}/good0.mp4", request)
    (here,) = segments.segments(str(videos / "good0.mp4"), request)
    np.testing.assert_array_equal(there.frames, here.frames)
    small = Request(EXTRACT.model_copy(update={"max_mb": 0.001}), (UNIFORM,), scratch=tmp_path)
    for url, reason, request_ in [
        (f"{address}/absent.mp4", "missing_file", request),
        (f"{address}/text.mp4", "undecodable", request),
        (f"{address}/good0.mp4", "too_large", small),
        ("http://127.0.0.1:1/a.mp4", "missing_file", request),
        (f"file://{videos}/good0.mp4", "missing_file", request),
        (f"simplecache::{address}/good0.mp4", "missing_file", request),
    ]:
        with pytest.raises(QuarantineError) as caught:
            list(segments.segments(url, request_))
        assert caught.value.reason == reason, url
    assert not list(tmp_path.iterdir())
    assert "file" not in fetch.SCHEMES


# -- scale ----------------------------------------------------------------------------------------


def test_the_probabilities_do_not_depend_on_the_batch(folder: Path, videos: Path) -> None:
    opened = open_models([folder / "one" / "package", folder / "two"])
    predictor = Predictor(opened)
    request = Request(EXTRACT, predictor.samplings)
    found = [next(segments.segments(str(videos / f"good{i}.mp4"), request)) for i in range(3)]
    together = predictor(found)
    for segment, expected in zip(found, together, strict=True):
        (alone,) = predictor([segment])
        for name in ("one", "two"):
            torch.testing.assert_close(alone[name], expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
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


def test_a_sampling_is_part_of_the_request_once(folder: Path) -> None:
    opened = open_models([folder / "one" / "package", folder / "one" / "adapter"])
    assert Predictor(opened).samplings == (SamplingConfig(strategy="uniform", num_frames=4),)
