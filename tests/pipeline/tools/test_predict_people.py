"""`vidpipe predict` of people in boxes: frames around a second, proposals, torchvision's detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from people import HEIGHT, SAMPLING, WIDTH, people, small_detector
from project import command
from safetensors.torch import save_file
from small_models import backbone_file, save_tiny_adapter

from pipeline.tools import demo, predict, predict_live, predict_people
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.inference.key_frames import Keys, key_segments
from vidpipe.inference.segments import Request
from vidpipe.tasks.detection.people import PersonDetector, Proposals
from vidpipe.tasks.detection.samples import frames_around, whole_frame
from vidpipe.tasks.registry import TASKS
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode
from vidpipe.video.quarantine import QuarantineError

EXTRACT = ExtractConfig(short_side=HEIGHT, min_frames=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people(tmp_path_factory.mktemp("people"), train=1, val=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return small_detector(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def folder(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "boxes"
    save_adapter(out, trained, {})
    return out


def job(folder: Path, **options: Any) -> predict.Job:
    return predict.Job(folders=(folder,), workers=1, **options)


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(decode(path, EXTRACT)[1]))


@pytest.mark.parametrize("step", [0.4, 1.0])
def test_the_frames_around_each_step(root: Path, step: float) -> None:
    file = root / "val_0.mp4"
    whole = decoded(file)
    request = Request(EXTRACT, (SAMPLING,))
    found = list(key_segments(str(file), request, Keys(step_s=step)))
    assert [s.start_s for s in found] == pytest.approx(np.arange(0, 3, step).tolist())
    for segment in found:
        at = frames_around(segment.start_s, 25, len(whole), 4, 5)
        np.testing.assert_array_equal(segment.frames, whole[at])


def test_the_seconds_of_proposals_on_their_own_clock(root: Path) -> None:
    file = root / "val_0.mp4"
    request = Request(EXTRACT, (SAMPLING,))
    keys = Keys({"val_0": [902, 901, 903]}, start_s=900)
    found = list(key_segments(str(file), request, keys))
    assert [s.start_s for s in found] == [901, 902, 903]
    whole = decoded(file)
    for segment in found:
        at = frames_around(segment.start_s - 900, 25, len(whole), 4, 5)
        np.testing.assert_array_equal(segment.frames, whole[at])
    late = key_segments(str(file), request, Keys({"val_0": [1, 9]}))
    assert next(late).start_s == 1
    with pytest.raises(QuarantineError, match="second 9: the video has 0 to 3"):
        next(late)
    assert list(key_segments(str(file), request, Keys({}))) == []


def test_rows_are_the_model_on_each_box(
    root: Path, folder: Path, trained: TrainedModel, tmp_path: Path
) -> None:
    out = tmp_path / "rows.parquet"
    files = [str(root / f"val_{i}.mp4") for i in range(2)]
    who = predict_people.Who(proposals=root / "val_proposals.csv")
    predict_people.run(job(folder), [*files, "nothere.mp4"], who, out=out)
    rows = pq.read_table(out).to_pylist()
    assert [row["reason"] for row in rows if row["reason"]] == ["missing_file"]
    own = [row for row in rows if row["part"] == "box"]
    assert len(own) == 2 * 2 * 2, "two people at two seconds of two videos; nobody of low score"
    proposals = Proposals(root / "val_proposals.csv", 0.8)
    for row in own:
        whole = decoded(Path(row["path"]))
        at = frames_around(row["start_s"], 25, len(whole), 4, 5)
        frames = torch.from_numpy(whole[at]).permute(0, 3, 1, 2)
        video = whole_frame(frames, (HEIGHT, WIDTH))[None]
        x = to_input(video, trained.backbone.mean, trained.backbone.std)
        boxes, scores = proposals(row["path"], row["start_s"], whole[0])
        place = next(i for i, box in enumerate(boxes.tolist()) if box == row["box"])
        assert row["box_score"] == pytest.approx(scores[place].item())
        with torch.no_grad():
            logits = TASKS["detection"].network(trained.model)(x, boxes[None])[0, place]
        np.testing.assert_allclose(row["all_probabilities"], logits.sigmoid().numpy(), atol=1e-5)
    assert np.ptp([row["all_probabilities"] for row in own], 0).max() > 0.02


def test_json_lines_have_boxes_only_where_there_are_any(
    root: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    who = predict_people.Who(proposals=root / "val_proposals.csv")
    predict_people.run(job(folder), [str(root / "val_0.mp4"), "nothere.mp4"], who, out=out, top=2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(
        len(row["box"]) == 4 and len(row["labels"]) == 2 for row in rows if not row["reason"]
    )
    assert "box" not in next(row for row in rows if row["reason"])


def test_what_is_missing_or_does_not_fit(root: Path, folder: Path, tmp_path: Path) -> None:
    file = [str(root / "val_0.mp4")]
    with pytest.raises(VidpipeError, match=r"boxes is a model of task detection.*--proposals"):
        predict.run(job(folder), file)
    with pytest.raises(VidpipeError, match="--live has none"):
        predict_live.run(job(folder), predict_live.Live(file[0]))
    with pytest.raises(VidpipeError, match="--proposals FILE or --detector"):
        demo.run(job(folder), 0)
    who = predict_people.Who(root / "val_proposals.csv")
    with pytest.raises(VidpipeError, match=r"step 0\.5: --proposals has the seconds itself"):
        predict_people.run(job(folder, step_s=0.5), file, who)
    both = predict_people.Who(root / "val_proposals.csv", "hub")
    for who in (predict_people.Who(), both):
        with pytest.raises(VidpipeError, match="--proposals FILE or --detector"):
            predict_people.run(job(folder), file, who)
    with pytest.raises(VidpipeError, match="--window"):
        predict_people.run(job(folder, window_s=1.0), file, predict_people.Who(detector="hub"))
    pickled = tmp_path / "found.pkl"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(VidpipeError, match="convert-proposals"):
        predict_people.run(job(folder), file, predict_people.Who(pickled))


def test_a_model_of_clips_has_no_boxes(root: Path, folder: Path, tmp_path: Path) -> None:
    weights = backbone_file(tmp_path / "vit.safetensors")
    clips = save_tiny_adapter(tmp_path / "clips", weights, "linear_probe")
    who, file = predict_people.Who(root / "val_proposals.csv"), [str(root / "val_0.mp4")]
    for folders in ((clips,), (folder, clips)):
        with pytest.raises(VidpipeError, match="clips is a model of task single_label"):
            predict_people.run(predict.Job(folders, workers=1), file, who)
    with pytest.raises(VidpipeError, match="clips is a model of task single_label"):
        demo.run(predict.Job((folder, clips)), 0)


def test_proposals_on_a_films_clock_by_the_command(
    root: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (root / "val_proposals.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines if line.startswith("val_0")]
    late = "".join(",".join([c[0], str(int(c[1]) + 900), *c[2:]]) + "\n" for c in cells)
    (tmp_path / "late.csv").write_text(late)
    words = ("predict", str(root / "val_0.mp4"), "--model", str(folder), "--workers", "1")
    own = ("--proposals", str(root / "val_proposals.csv"), "--out", str(tmp_path / "own.parquet"))
    assert command(monkeypatch, *words, *own) == 0
    given = ("--proposals", str(tmp_path / "late.csv"), "--proposals-start", "900")
    out = ("--out", str(tmp_path / "late.parquet"))
    assert command(monkeypatch, *words, *given, *out) == 0
    first, second = (pq.read_table(tmp_path / f"{n}.parquet").to_pylist() for n in ("own", "late"))
    assert len(first) == 4
    assert [row["start_s"] for row in second] == [row["start_s"] + 900 for row in first]
    drop = ("start_s", "end_s")
    same = [[{k: v for k, v in row.items() if k not in drop} for row in x] for x in (first, second)]
    assert same[0] == same[1]


def test_a_detector_is_asked_every_step(
    root: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = torch.tensor([[0.1, 0.1, 0.5, 0.9]])
    monkeypatch.setattr(
        predict_people, "PersonDetector", lambda *_: lambda *_: (box, torch.tensor([0.9]))
    )
    out = tmp_path / "rows.parquet"
    who = predict_people.Who(detector="hub")
    predict_people.run(job(folder, step_s=0.5), [str(root / "val_0.mp4")], who, out=out)
    rows = pq.read_table(out).to_pylist()
    assert [row["start_s"] for row in rows] == [0, 0.5, 1, 1.5, 2, 2.5]
    with pytest.raises(VidpipeError, match="step 0: expected seconds above 0"):
        predict_people.run(job(folder, step_s=0.0), [str(root / "val_0.mp4")], who)


def test_torchvisions_detector_by_its_file(root: Path, tmp_path: Path) -> None:
    from torchvision.models import get_model

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(VidpipeError, match=r"no such file.*or hub"):
        PersonDetector(str(tmp_path / "none.pth"), name, 0.5, torch.device("cpu"))
    with pytest.raises(VidpipeError, match="detector_model yolo: expected fasterrcnn"):
        PersonDetector("hub", "yolo", 0.5, torch.device("cpu"))
    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=91).eval()
    with torch.no_grad():  # everything is a person to it
        model.roi_heads.box_predictor.cls_score.bias[1] += 5
    file = tmp_path / "detector.safetensors"
    save_file(model.state_dict(), file)
    own = PersonDetector(str(file), name, 0.5, torch.device("cpu"))
    frame = decoded(root / "val_0.mp4")[25]
    boxes, scores = own("val_0.mp4", 1.0, frame)
    (expected,) = model([torch.from_numpy(frame).permute(2, 0, 1).float() / 255])
    assert len(boxes) == len(scores) == int((expected["labels"] == 1).sum()) > 0
    width, height = frame.shape[1], frame.shape[0]
    whole = torch.tensor([width, height, width, height])
    first = expected["boxes"][expected["labels"] == 1][0]
    torch.testing.assert_close(boxes[0] * whole, first, atol=1e-3, rtol=1e-4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(VidpipeError, match=r"detector.safetensors"):
        PersonDetector(str(file), name, 0.5, torch.device("cpu"))
