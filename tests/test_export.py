"""The package, its programs and the proof that they are the model that was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise
from safetensors.torch import load_file, save_file
from small_store import small_store
from test_layers import run_without

from pipeline.export import refuse_other_classes
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.config import ExportConfig
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import to_input
from vidpipe.errors import VidpipeError
from vidpipe.export.card import Facts, model_card
from vidpipe.export.package import (
    describe,
    inference_model,
    load_package,
    open_model,
    prove_parity,
    save_package,
)
from vidpipe.export.parity import Parity, prove_program
from vidpipe.export.programs import Classifier, open_program, write_program
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.checkpoint import TrainedModel

T, SIZE = 4, 48
NAME = "vit_still_patch12_48"
CLASSES = ["left", "right", "up"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    vit = architecture(BackboneConfig(name=NAME, weights="none"), SIZE)
    randomise(vit)
    save_file(vit.state_dict(), path)
    return path


def trained_model(weights: Path, name: str, **options: object) -> TrainedModel:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, backbone.vit, len(CLASSES), T, config)
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    return TrainedModel(model.eval(), backbone, CLASSES, sampling, TransformConfig(size=SIZE))


def clips(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(
        0, 256, (count, T, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator
    )


def normalised(trained: TrainedModel, count: int = 3) -> list[torch.Tensor]:
    x = to_input(clips(count), trained.backbone.mean, trained.backbone.std)
    return list(x.split(1))


def exported(trained: TrainedModel) -> TrainedModel:
    model = inference_model(trained.model)
    return TrainedModel(
        model, trained.backbone, trained.classes, trained.sampling, trained.transform
    )


def test_classifier_takes_the_pixels_of_a_clip(weights: Path) -> None:
    trained = trained_model(weights, "aim")
    x = to_input(clips(2), trained.backbone.mean, trained.backbone.std)
    assert torch.equal(Classifier(trained)(clips(2)), trained.model(x))


@pytest.mark.parametrize("name", list(METHODS))
def test_torch_program_gives_the_trained_logits_for_any_batch(
    tmp_path: Path, weights: Path, name: str
) -> None:
    trained = trained_model(weights, name)
    served = exported(trained)
    path = write_program(tmp_path, served, "torch_export", "fp32", describe(trained, served.model))
    expected = torch.cat([trained.model(x) for x in normalised(trained, 5)]).detach()
    parity = prove_program(expected, open_program(path), clips(5), 1e-4, file=path.name)
    assert parity.top1_agreement == 1
    extra = {"vidpipe.json": ""}
    torch.export.load(path, extra_files=extra)
    about = json.loads(extra["vidpipe.json"])
    assert about["classes"] == CLASSES
    assert about["input"]["shape"] == ["batch", T, 3, SIZE, SIZE]


@pytest.mark.parametrize("name", ["linear_probe", "st_adapter", "aim", "zeroi2v", "lora"])
def test_onnx_program_gives_the_trained_logits_for_any_batch(
    tmp_path: Path, weights: Path, name: str
) -> None:
    onnx = pytest.importorskip("onnx")
    trained = trained_model(weights, name)
    served = exported(trained)
    path = write_program(tmp_path, served, "onnx", "fp32", describe(trained, served.model))
    expected = torch.cat([trained.model(x) for x in normalised(trained, 5)]).detach()
    prove_program(expected, open_program(path, 1), clips(5), 1e-4, file=path.name)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["vidpipe"])["classes"] == CLASSES
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
