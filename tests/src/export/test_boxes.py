"""Programs that take boxes: task detection from a package to torch.export and ONNX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from people import HEIGHT, WIDTH, small_detector

import vidpipe
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.export.model_card import Facts, model_card
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import Parity, prove_parity, prove_program
from vidpipe.export.programs import PixelModel, open_program, write_program
from vidpipe.tasks.detection.detector import Detector
from vidpipe.trained.package import load_package
from vidpipe.trained.trained_model import TrainedModel

FAMILY = next(iter(FAMILIES))
CLIPS = torch.randint(
    0, 256, (5, 4, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
CORNERS = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(1)) * 0.5
BOXES = torch.cat([CORNERS, CORNERS + 0.4], 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Of three blocks: tracing takes a second a block and program."""
    return small_detector(tmp_path_factory.mktemp("weights"), "zeroi2v", f"tiny_{FAMILY}")


@pytest.fixture(scope="module")
def package(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "package"
    save_package(folder, trained, inference_model(trained.model), Parity(5, 0.0, 1.0, 1e-4))
    return folder


def normalised(trained: TrainedModel) -> list[torch.Tensor]:
    x = to_input(CLIPS, trained.backbone.mean, trained.backbone.std)
    return list(x.split(1))


@torch.no_grad()
def test_padded_boxes_are_those_one_by_one(trained: TrainedModel) -> None:
    own = Detector(trained.model)
    x = torch.cat(normalised(trained))
    rows = [torch.tensor([i, *box]) for i in range(5) for box in BOXES[i].tolist()]
    torch.testing.assert_close(own(x, BOXES).flatten(0, 1), own(x, torch.stack(rows)))


def test_the_package_is_proven_on_boxes(trained: TrainedModel, package: Path) -> None:
    served = load_package(package)
    options: dict[str, Any] = {"boxes": BOXES.split(1), "task": trained.task}
    parity = prove_parity(trained.model, served.model, normalised(trained), 1e-3, **options)
    assert parity.max_abs_difference < 1e-3
    with torch.no_grad():
        served.model.head.weight[0] += 1
    with pytest.raises(VidpipeError, match="differs from the trained one"):
        prove_parity(trained.model, served.model, normalised(trained), 1e-3, **options)


@pytest.fixture(scope="module")
def programs(trained: TrainedModel, package: Path) -> Path:
    """The package with its programs."""
    pytest.importorskip("onnxruntime")
    for form in ("torch_export", "onnx"):
        write_program(package, load_package(package), form, "fp32", {"classes": trained.classes})
    return package


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_programs_take_any_number_of_boxes(
    trained: TrainedModel, programs: Path, file: str
) -> None:
    path = programs / file
    program = open_program(path, 1)
    whole = PixelModel(trained)
    with torch.no_grad():
        expected = whole(CLIPS, BOXES)
    assert expected.shape == (5, 3, 3)
    assert 0 <= expected.min() < expected.max() <= 1
    labels = {"file": path.name}
    prove_program(expected, program, CLIPS, 1e-4, boxes=BOXES, **labels)
    for boxes in (BOXES[:2, :1], BOXES[:2].repeat(1, 4, 1)):
        with torch.no_grad():
            own = whole(CLIPS[:2], boxes)
        torch.testing.assert_close(program(CLIPS[:2], boxes), own, atol=1e-4, rtol=0)
    with pytest.raises(VidpipeError, match=path.name):
        prove_program(expected, program, CLIPS, 1e-4, boxes=BOXES.flip(1), **labels)


def test_the_model_cards_snippets_run(
    trained: TrainedModel, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (("torch_export", "model.pt2"), ("onnx", "model.onnx"))
    parities = [Parity(5, 0.0, 1.0, 1e-4, form, "fp32", file) for form, file in files]
    package = programs
    card = model_card(trained, load_package(package).model, parities, Facts({}, {}, {}, {}, {}, ""))
    use = card.partition("## Use")[2].partition("## Data")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", use, re.MULTILINE)
    code = ["\n".join(line[4:] for line in block.splitlines()) for block in blocks if block.strip()]
    assert len(code) == 3
    monkeypatch.chdir(package)
    found = []
    for each in code:
        names: dict[str, Any] = {}
        exec(each, names)
        found.append(
            np.asarray(
                names["probabilities"].detach() if "torch" in names else names["probabilities"]
            )
        )
    assert all(f.shape == (2, 1, 3) for f in found)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


def test_a_classifier_of_clips_says_what_it_needs(package: Path) -> None:
    with pytest.raises(VidpipeError, match="answers for boxes, not for clips"):
        vidpipe.load(package)
