"""A whole frame that is not square, through every stage: 3 x 5 patches, as the card says and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from clips import moving
from small_store import small_project
from typer.testing import CliRunner
from videos import write_video

import vidpipe
from pipeline.cli.app import app
from vidpipe.files import read_json


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, repr(done.exception)
    return done.output


def project(folder: Path, **transform: object) -> None:
    small_project(folder, epochs=1, warmup_epochs=0)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["transform"] |= transform
    raw["evaluate"] = {"spatial_crops": 3}
    raw["export"] |= {"formats": ["torch_export", "onnx"], "parity_clips": 2}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))


@pytest.mark.long
def test_a_wide_frame_through_every_stage(in_folder: Path) -> None:
    project(in_folder, size=[36, 60], interpolation="bicubic", crop_pct=0.9)
    shown = json.loads(run("profile", "--method", "zeroi2v", "--json"))
    assert shown["size"] == [36, 60]
    assert "36 x 60 px" in run("profile", "--method", "zeroi2v")
    for stage in ("train", "evaluate", "export"):
        run(stage, "--method", "zeroi2v")
    for folder in ("adapter", "package"):
        card = read_json(in_folder / "models/zeroi2v" / folder / "config.json")
        transform = card["transform"]
        assert [transform[key] for key in ("size", "interpolation", "crop_pct")] == [
            [36, 60],
            "bicubic",
            0.9,
        ]
    package = in_folder / "models/zeroi2v/package"
    assert card["input"]["shape"][1:] == [4, 3, 36, 60]
    assert "resized to cover the size / 0.9 (bicubic) and cropped" in card["input"]["meaning"]
    assert "4 RGB frames of 36 x 60 px" in (package / "MODEL_CARD.md").read_text()
    assert {row["file"] for row in read_json(package / "parity.json")} >= {
        "model.pt2",
        "model.onnx",
    }
    costs = read_json(in_folder / "results/zeroi2v/train.json")["cost"]
    assert costs["gmacs"] == pytest.approx(shown["gflops_per_view"], rel=0.01)

    # The adapter, the package and its programs answer alike, on frames of any size.
    frames = torch.randint(0, 256, (4, 3, 50, 90), dtype=torch.uint8)
    one, two = (
        vidpipe.load(package.parent / name, device="cpu") for name in ("adapter", "package")
    )
    clip = one.preprocess(frames)
    assert clip.shape == (1, 3, 4, 36, 60)
    torch.testing.assert_close(
        two.model(two.preprocess(frames)), one.model(clip), atol=1e-4, rtol=0
    )
    write_video(in_folder / "a.mp4", moving(12))
    said = run("predict", str(in_folder / "a.mp4"), "--format", "jsonl", "--model", str(package))
    (row,) = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-3)
    run("explain", "--method", "zeroi2v", "--clips", "1")
    assert len(list((in_folder / "models/zeroi2v/explanation").iterdir())) == 2
    run("data", "show", "--clips", "1", "--split", "val")


def test_what_is_left_to_the_card_is_written_down(in_folder: Path) -> None:
    """The embedded ViT's says 48 pixels, bilinear, the whole short side: the same training."""
    seen = {}
    for name, transform in {
        "given": {},
        "card": {"size": None, "interpolation": "card", "crop_pct": "card"},
    }.items():
        folder = in_folder / name
        folder.mkdir()
        project(folder, **transform)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run("train", "--method", "linear_probe")
        adapter = folder / "models/linear_probe/adapter"
        seen[name] = (
            read_json(adapter / "config.json"),
            (adapter / "adapter.safetensors").read_bytes(),
        )
    (given, tensors), (card, others) = seen["given"], seen["card"]
    assert card["transform"] == given["transform"]
    assert "interpolation" not in card["transform"]
    assert others == tensors
    assert card["training"]["identity"] != given["training"]["identity"]


def test_a_size_that_does_not_fit_is_one_line(in_folder: Path) -> None:
    project(in_folder, size=[36, 64])
    done = CliRunner().invoke(app, ["train", "--method", "linear_probe"])
    assert "36 x 64 px is no multiple of vit_still_patch12_48's patch of 12 px" in str(
        done.exception
    )
    assert "nearest that work: 36 x 60 and 36 x 72" in str(done.exception)
    assert not (in_folder / "models").exists()
