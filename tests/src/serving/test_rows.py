"""A table of videos: each row has the answer that its video has alone, or says why there is none."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from people import people, small_detector
from small_models import DENSE, backbone_file, here, save_tiny_adapter
from videos import good_and_bad_videos

from vidpipe.errors import VidpipeError
from vidpipe.inference.given import Rules
from vidpipe.serving import rows as module
from vidpipe.serving.rows import COLUMNS, Rows
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.shelf import Shelf


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    (root / "videos").mkdir()
    good_and_bad_videos(root / "videos")
    save_tiny_adapter(root / "one", backbone_file(root / "vit.safetensors"), sampling=DENSE)
    people(root / "people", train=1, val=0)
    (root / "weights").mkdir()
    save_adapter(root / "boxes", small_detector(root / "weights"), {})
    return root


@pytest.fixture(scope="module")
def one(root: Path) -> Iterator[Rows]:
    rows = Rows(Shelf().load("one", root / "one"), Rules(root, max_mb=0.5))
    yield rows
    if rows._decoder is not None:
        rows._decoder.close()


@pytest.fixture(scope="module")
def boxes(root: Path, one: Rows) -> Rows:
    one([{"path": "videos/good0.mp4"}], {})
    rows = Rows(Shelf().load("boxes", root / "boxes"), one.rules)
    rows._decoder = one._decoder  # it decodes for any model, and takes seconds to start
    return rows


def test_a_row_that_fails_takes_no_other_along(one: Rows, root: Path) -> None:
    files = [root / "videos" / f"good{i}.mp4" for i in range(3)]
    frames = np.random.default_rng(0).integers(0, 256, (9, 3, 40, 50), dtype=np.uint8)
    text = base64.b64encode(files[1].read_bytes()).decode()
    asked: list[tuple[dict[str, Any], Any]] = [
        ({"path": "videos/cut.mp4"}, "truncated"),
        ({"path": "videos/good0.mp4"}, files[0]),
        ({"path": "../a"}, "outside_root"),
        ({"bytes": text}, files[1]),
        ({"bytes": files[2].read_bytes(), "url": None}, files[2]),
        ({"bytes": "*"}, "bad_parameter"),
        ({"bytes": bytes(2**20)}, "too_large"),
        ({"url": "http://host/a.mp4"}, "no_urls"),
        ({}, "bad_parameter"),
        ({"path": "a", "frames": frames}, "bad_parameter"),
        ({"path": "videos/good0.mp4", "boxes": [[0, 0, 0, 1, 1]]}, "bad_parameter"),
        ({"frames": frames}, frames),
        ({"frames": frames.tolist()}, frames),
        ({"frames": [[1], [2, 3]]}, "bad_parameter"),
        ({"frames": frames.astype(np.float32)}, "bad_parameter"),
        ({"frames": (frames.astype(int) - 1).tolist()}, "bad_parameter"),
        ({"frames": frames[:, :2]}, "bad_parameter"),
        *[({"path": "videos/good0.mp4"}, files[0])] * 9,
    ]
    answers = one([row for row, _ in asked], {"top": 2})
    classifier = here(root / "one")
    for answer, (row, expected) in zip(answers, asked, strict=True):
        assert tuple(answer) == COLUMNS
        if isinstance(expected, str):
            assert answer["reason"] == expected, row
            assert "\n" not in answer["error"]
            continue
        guesses = classifier.predict(expected, top=2)
        assert [each["label"] for each in answer["labels"]] == [g.label for g in guesses]
        scores = [each["score"] for each in answer["labels"]]
        assert scores == pytest.approx([g.probability for g in guesses], abs=1e-5)
        assert (answer["seconds"] is None) == isinstance(expected, np.ndarray)
    assert len({answer["labels"][0]["score"] for answer in answers if answer["labels"]}) > 3


def test_what_is_asked_is_checked_for_each_row(one: Rows) -> None:
    rows = [{"path": "videos/good0.mp4"}, {"frames": np.zeros((4, 3, 32, 32), np.uint8)}]
    for wrong in ({"top": 0}, {"tpo": 1}, {"answer": "boxes"}, {"answer": "timeline"}):
        assert [each["reason"] for each in one(rows, wrong)] == ["bad_parameter"] * 2, wrong
    asked = {"answer": "timeline", "window": 0.4, "step": 0.2}
    video, frames = one(rows, asked)
    assert frames["reason"] == "bad_parameter"
    assert video["timeline"][0]["start"] == 0
    assert video["timeline"][-1]["end"] == pytest.approx(video["seconds"])
    assert one([], {}) == []


def test_boxes_are_answered_at_their_seconds(boxes: Rows, root: Path) -> None:
    video = root / "people" / "train_0.mp4"
    given = [[1, 0.1, 0.2, 0.3, 0.8], [2, 0.5, 0.1, 0.9, 0.9], [1, 0.6, 0.2, 0.8, 0.7]]
    clip = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 64), dtype=np.uint8)
    own = np.array([[0.1, 0.2, 0.6, 0.9]], np.float32)
    rows = [
        {"path": str(video), "boxes": given},
        {"path": str(video)},
        {"frames": clip, "boxes": own},
        {"frames": clip[:3], "boxes": own},
        {"frames": clip, "boxes": given},
        {"frames": clip},
        {"path": str(video), "boxes": "no"},
        {"path": str(video), "boxes": [[9, 0, 0, 1, 1]]},
    ]
    answers = boxes(rows, {})
    assert [each["reason"] for each in answers] == [
        *(None, "bad_parameter", None, *["bad_parameter"] * 4, "too_short"),
    ]
    assert [(b["second"], *b["box"]) for b in answers[0]["boxes"]] == [
        pytest.approx(given[i]) for i in (0, 2, 1)
    ]
    model = boxes.model
    segment = module.of_frames(clip, model.trained.sampling, 1)
    expected = model.predictor.of_boxes(segment, model.trained, torch.from_numpy(own))[0]
    (found,) = answers[2]["boxes"]
    scores = {each["label"]: each["score"] for each in found["labels"]}
    assert [scores[name] for name in model.trained.classes] == pytest.approx(
        expected.tolist(), abs=1e-6
    )


def test_an_error_of_the_model_is_a_row_and_stands_in_the_log(
    one: Rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip = {"frames": np.zeros((4, 3, 32, 32), np.uint8)}
    monkeypatch.setattr(one.model.predictor, "models", None)
    answers = one([clip, {}], {})
    assert [each["reason"] for each in answers] == ["internal", "bad_parameter"]
    assert "NoneType" in caplog.text
    assert "NoneType" not in answers[0]["error"]


def test_limits_out_of_bounds_are_seen_at_once(one: Rows) -> None:
    with pytest.raises(VidpipeError, match="max_frames"):
        Rows(one.model, Rules(max_frames=0))
