"""Several trained models on one backbone, asked together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import (
    two_models_and_a_package,
)
from videos import good_and_bad_videos

from vidpipe.data.config import SamplingConfig
from vidpipe.errors import VidpipeError
from vidpipe.inference import segments
from vidpipe.inference.segments import Request
from vidpipe.trained import predictor
from vidpipe.trained.package import open_model
from vidpipe.trained.predictor import Predictor, open_models
from vidpipe.video.config import ExtractConfig

EXTRACT = ExtractConfig(short_side=36, min_frames=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models_and_a_package(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_and_bad_videos(tmp_path_factory.mktemp("videos"))


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


def test_a_sampling_is_part_of_the_request_once(folder: Path) -> None:
    opened = open_models([folder / "one" / "package", folder / "one" / "adapter"])
    assert Predictor(opened).samplings == (SamplingConfig(strategy="uniform", num_frames=4),)
