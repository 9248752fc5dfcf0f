"""`save`, `load` and `Classifier`: a trained model in hand."""

from __future__ import annotations

import doctest
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import moving
from small_models import (
    DENSE,
    SIZE,
    T,
    backbone_file,
    save_tiny_adapter,
    save_tiny_package,
    tiny_model,
)
from torch import Tensor
from videos import write_video

from pipeline.tools import predict
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.create import create_model
from vidpipe.trained import Classifier, load, save
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.decode import decode

CALLS = ("predict", "features", "preprocess", "merge")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbone_file(tmp_path_factory.mktemp("weights") / "backbone.safetensors")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, moving(37))
    return path


def created(weights: Path, method: str = "st_adapter") -> VideoModel:
    """A model as `vidpipe.create_model` makes it, with adapters that do something."""
    trained = tiny_model(weights, method)
    trained.model.backbone, trained.model.form = trained.backbone, trained.form
    return trained.model


def frames(count: int, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def logits(classifier: Classifier) -> Tensor:
    with torch.inference_mode():
        return classifier.model(classifier.preprocess(frames(T)))


# -- files and frames ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "package"])
def test_a_file_gets_what_the_command_gives(
    tmp_path: Path, weights: Path, clip: Path, kind: str
) -> None:
    save_it = save_tiny_adapter if kind == "adapter" else save_tiny_package
    folder = save_it(tmp_path / "model", weights, sampling=DENSE)
    with load(folder, temporal_clips=2, spatial_crops=3) as classifier:
        found = classifier.predict(clip)
        for (both,) in classifier.predict(
            [str(clip), clip], top=1
        ):  # processors round by batch size
            assert both.label == found[0].label
            assert both.probability == pytest.approx(found[0].probability, abs=1e-6)
    job = predict.Job((folder,), workers=1, temporal_clips=2, spatial_crops=3)
    out = tmp_path / "rows.jsonl"
    predict.run(job, [str(clip)], out=out)
    row = json.loads(out.read_text())
    assert [guess.label for guess in found] == row["labels"]
    assert [round(guess.probability, 6) for guess in found] == row["probabilities"]
    assert len(found) == 3
    assert found[0].probability > found[-1].probability + 0.01


def test_decoded_frames_get_what_their_file_gets(tmp_path: Path, weights: Path, clip: Path) -> None:
    with load(save_tiny_package(tmp_path / "model", weights, sampling=DENSE)) as classifier:
        _, decoded = decode(clip, classifier._request.extract)
        video = torch.stack([torch.from_numpy(f) for f in decoded]).permute(0, 3, 1, 2)
        assert len(video) == 37
        assert classifier.predict(clip) == classifier.predict(video)
        assert classifier.predict(video.numpy()) == classifier.predict(video)
        assert torch.equal(classifier.features(clip), classifier.features(video))


def test_as_many_frames_as_the_model_takes_are_the_clip(tmp_path: Path, weights: Path) -> None:
    """Dense sampling at stride 2 would read four frames as every other one, looped."""
    classifier = load(save_tiny_package(tmp_path / "model", weights, sampling=DENSE))
    video = frames(T)
    with torch.inference_mode():
        expected = classifier.model(classifier.preprocess(video)).softmax(-1)[0]
    found = dict(classifier.predict(video))
    assert [found[name] for name in classifier.classes] == pytest.approx(expected.tolist())
    assert classifier.predict(video.flip(0)) != classifier.predict(video)


def test_features_are_what_the_head_reads(tmp_path: Path, weights: Path) -> None:
    classifier = load(save_tiny_package(tmp_path / "model", weights))
    several = classifier.features([frames(T), frames(9, seed=1)])
    assert several.shape == (2, classifier.model.width)
    assert torch.equal(several[0], classifier.features(frames(T)))
    with torch.inference_mode():
        probabilities = classifier.model.head(several[1]).softmax(-1)
    found = dict(classifier.predict(frames(9, seed=1)))
    assert [found[name] for name in classifier.classes] == pytest.approx(probabilities.tolist())
    assert classifier.features([]).shape == (0, classifier.model.width)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("missing.mp4", r"missing\.mp4: missing_file"),
        ("https://host/a.mp4", "expected a local file"),
        (torch.zeros(4, 3, 8, 8), "frames: float32 of shape"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"expected uint8 RGB \(N, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"shape \(0, 3, 8, 8\)"),
    ],
)
def test_what_is_no_video_is_one_line(
    tmp_path: Path, weights: Path, video: object, message: str
) -> None:
    with load(save_tiny_package(tmp_path / "model", weights)) as classifier:
        for ask in (classifier.predict, classifier.features):
            with pytest.raises(VidpipeError, match=message) as error:
                ask(video)
            assert "\n" not in str(error.value)
        with pytest.raises(VidpipeError, match="top 0: expected 1 or more"):
            classifier.predict(frames(T), top=0)


def test_a_script_without_a_main_guard_can_classify_files(
    tmp_path: Path, weights: Path, clip: Path
) -> None:
    """The decoding process must not run the user's script once more."""
    folder = save_tiny_package(tmp_path / "model", weights)
    script = tmp_path / "script.py"
    script.write_text(
        "from vidpipe.trained import load\nprint('once')\n"
        f"print(load({str(folder)!r}).predict({str(clip)!r}, top=1))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("once") == 1
    assert "Guess(label=" in done.stdout


# -- merge --------------------------------------------------------------------------------------


def test_merged_it_answers_the_same_without_adapters(tmp_path: Path, weights: Path) -> None:
    classifier = load(save_tiny_adapter(tmp_path / "model", weights, "zeroi2v"))
    merged = classifier.merge()
    torch.testing.assert_close(logits(merged), logits(classifier), atol=1e-4, rtol=1e-4)
    count = [sum(p.numel() for p in c.model.parameters()) for c in (merged, classifier)]
    assert count[0] < count[1]
    assert [g.label for g in merged.predict(frames(9))] == [
        g.label for g in classifier.predict(frames(9))
    ]


def test_what_cannot_be_merged_says_why(tmp_path: Path, weights: Path) -> None:
    classifier = load(save_tiny_package(tmp_path / "model", weights, "st_adapter"))
    with pytest.raises(VidpipeError, match=r"^st_adapter cannot be merged: \w+"):
        classifier.merge()


# -- save and load ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear_probe", "aim", "full_finetune"])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, weights: Path, method: str) -> None:
    model = created(weights, method).eval()
    save(
        model,
        tmp_path / "out",
        classes=["a", "b", "c"],
        sampling={"strategy": "dense", "stride": 16},
        extract={"short_side": 36, "fps": None},
        training={"seed": 2**62, "note": "more\nthan a parameter may say " * 100},
    )
    classifier = load(tmp_path / "out")
    assert classifier.classes == ["a", "b", "c"]
    sampling = classifier.trained.sampling
    assert (sampling.strategy, sampling.stride, sampling.num_frames) == ("dense", 16, T)
    assert classifier._request.extract.short_side == 36
    x = classifier.preprocess(frames(T))
    with torch.inference_mode():
        assert torch.equal(classifier.model(x), model(x))
    backbone = classifier.trained.backbone
    view = torch.nn.functional.interpolate(torch.zeros(1, 3, 8, 8), SIZE)  # of black frames
    assert torch.equal(
        classifier.preprocess(torch.zeros(T, 3, 8, 8, dtype=torch.uint8)),
        to_input(view.to(torch.uint8).expand(1, T, -1, -1, -1), backbone.mean, backbone.std),
    )


@pytest.mark.parametrize("method", ["st_adapter", "full_finetune"])
def test_a_backbone_that_no_file_holds_travels_along(
    tmp_path: Path, weights: Path, method: str
) -> None:
    copy = tmp_path / "soon_gone.safetensors"
    copy.write_bytes(weights.read_bytes())
    model = created(copy, method).eval()
    copy.unlink()
    save(model, tmp_path / "out", classes=["a", "b", "c"])
    (tmp_path / "out").rename(tmp_path / "moved")
    classifier = load(tmp_path / "moved")
    x = classifier.preprocess(frames(T))
    with torch.inference_mode():
        assert torch.equal(classifier.model(x), model(x))
    assert load(tmp_path / "moved", weights=tmp_path / "moved" / "backbone.safetensors").classes


def test_what_cannot_be_saved_is_one_line(tmp_path: Path, weights: Path) -> None:
    model = created(weights)

    def refused(message: str, **options: object) -> None:
        with pytest.raises(VidpipeError, match=message) as error:
            save(model, tmp_path / "out", **{"classes": ["a", "b", "c"], **options})
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    refused("classes: 2 names, but the model has 3 classes", classes=["a", "b"])
    refused("classes: a text, but", classes="abc")
    refused("'a' appears twice", classes=["a", "b", "a"])
    refused("sampling.num_frames: 8, but the model was made for 4", sampling={"num_frames": 8})
    refused("sampling.stride", sampling={"strategy": "dense", "stride": 0})
    refused("sampling.strids: unknown key; nearest is stride", sampling={"strids": 1})
    refused("transform.size: 224, but the model was made for 32", transform={"size": 224})
    refused("short_side and fps", extract={"short_side": 36})
    del model.backbone
    refused("does not know its backbone; make it by vidpipe.create_model")


@pytest.mark.parametrize(
    "thing",
    [save, load, Classifier, *(getattr(Classifier, n) for n in CALLS)],
    ids=lambda thing: thing.__qualname__,
)
def test_docstrings_say_what_is_taken_and_given_and_their_examples_run(thing: Any) -> None:
    text = inspect.getdoc(thing) or ""
    for name in set(inspect.signature(thing).parameters) - {"self"}:
        assert f"{name}: " in text, f"{name} is not described"
    assert "Raises:" in text
    model = create_model(
        "st_adapter", ARCHITECTURE, num_classes=2, num_frames=8, weights=WEIGHTS
    ).eval()
    sampling, transform = {"strategy": "uniform", "num_frames": 8}, {"size": model.img_size}
    trained = TrainedModel(
        *(model, model.backbone, ["left", "right"]),
        *(SamplingConfig(**sampling), TransformConfig(**transform)),
    )
    names = {**vars(sys.modules[thing.__module__]), "trained": trained}
    names["clf"] = Classifier(trained)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, "example", globs=names)
    assert test.examples
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)
