"""Evaluation, prediction, explanation and the commands on a GPU: near the CPU's answers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small_models import backbone_file, tiny_model
from small_store import UNIFORM, small_project, small_store
from tiny import randomise, tiny_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from vidpipe.data.config import TransformConfig
from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.evaluation.evaluate import ORDERS, Evaluator, predict
from vidpipe.explain import explain_clip
from vidpipe.export.latency import latency_ratio
from vidpipe.files import read_json
from vidpipe.inference.segments import Segment
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.predictor import Predictor
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.weights import read_weights

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


@pytest.fixture
def exact() -> None:
    """fp32 as a CPU has it; a GPU's matrix units may round its inputs to 10 bits."""
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("method", ["aim", "st_adapter", "zeroi2v"])
def test_evaluation_is_near_that_of_the_cpu(
    device: torch.device, method: str, tmp_path: Path, exact: None
) -> None:
    model = build_method(method, tiny_vit(), 2, UNIFORM.num_frames, METHODS[method].Config())
    randomise(model)
    views = ViewSet(
        Clips(small_store(tmp_path), "train", ["a", "b"]),
        UNIFORM,
        TransformConfig(size=32),
        1,
        3,
    )
    here = Evaluator(model.eval(), views, ((0.5,) * 3, (0.5,) * 3), batch_size=3)
    expected = predict(here)
    there = replace(here, model=copy.deepcopy(model).to(device))
    found = predict(replace(there, precision="fp32", loader_workers=2))
    assert found.probabilities.device == CPU
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-3, rtol=1e-3)
    for name in ORDERS:
        torch.testing.assert_close(found.orders[name], expected.orders[name], atol=1e-3, rtol=1e-3)
    rounded = predict(there)  # bf16 and loader processes, on a GPU
    torch.testing.assert_close(rounded.probabilities, expected.probabilities, atol=0.2, rtol=0)


def a_segment(seed: int) -> Segment:
    frames = np.random.default_rng(seed).integers(0, 256, (4, 36, 36, 3), dtype=np.uint8)
    return Segment(0.0, 1.0, frames, (np.arange(4)[None],))


def test_prediction_is_near_that_of_the_cpu(device: torch.device, tmp_path: Path) -> None:
    trained = tiny_model(backbone_file(tmp_path / "w.safetensors"))
    segments = [a_segment(seed) for seed in range(3)]
    expected = Predictor({"m": trained}, 1, 3, CPU)(segments)
    for precision, allowed in (("fp32", 1e-3), ("auto", 0.2)):
        found = Predictor({"m": trained}, 1, 3, device, precision)(segments)
        for one, other in zip(found, expected, strict=True):
            assert one["m"].device == CPU
            torch.testing.assert_close(one["m"], other["m"], atol=allowed, rtol=0)


@pytest.mark.parametrize("method", ["aim", "zeroi2v"])
def test_an_explanation_lies_on_the_cpu(device: torch.device, method: str, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    trained: TrainedModel = tiny_model(backbone_file(tmp_path / "w.safetensors"), method)
    frames = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = explain_clip(trained, frames, grad_cam=True, target=0)
    trained.model.to(device)
    found = explain_clip(trained, frames, grad_cam=True, target=0)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-3, rtol=1e-3)
    for view, other in zip(found.views, expected.views, strict=True):
        torch.testing.assert_close(view.maps, other.maps, atol=1e-2, rtol=1e-2)


def test_a_latency_is_measured(device: torch.device, tmp_path: Path) -> None:
    model = tiny_model(backbone_file(tmp_path / "w.safetensors")).model.to(device)
    assert latency_ratio(model, model, torch.zeros(1, 3, 4, 32, 32, device=device)) > 0


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_commands_train_evaluate_and_export(
    device: torch.device, workers: int, in_folder: Path
) -> None:
    """In this process, and by a Ray worker that is given the GPU."""
    for name in ("ray", "mlflow"):
        pytest.importorskip(name)
    from pipeline.cli.app import app

    use = "yes" if device.type == "cuda" else "no"
    small_project(in_folder, epochs=2, num_workers=workers, use_gpu=use)

    def run(*words: str) -> None:
        done = CliRunner().invoke(app, [*words, "--method", "st_adapter"])
        assert done.exit_code == 0, repr(done.exception)

    adapter = in_folder / "models/st_adapter/adapter"
    shas = []
    for out in (".", "again"):  # two whole trainings give the same bits
        if out == "again":
            (in_folder / "again/data").mkdir(parents=True)
            (in_folder / "again/data/store").symlink_to(in_folder / "data/store")
        run("train", "--out", out)
        tensors = in_folder / out / "models/st_adapter/adapter/adapter.safetensors"
        shas.append({k: v.tolist() for k, v in read_weights(tensors)[0].items()})
    assert shas[0] == shas[1]
    assert read_json(adapter / "config.json")["training"]["train"]["use_gpu"] == use
    for stage in ("evaluate", "export", "explain"):
        run(stage)
    assert 0 <= read_json(in_folder / "results/st_adapter/eval.json")["top1"] <= 1


@pytest.mark.parametrize("method", ["st_adapter", "aim", "zeroi2v"])
def test_rotary_positions_leave_attention_fused(method: str, gpu: torch.device) -> None:
    """In bf16 the flash kernel takes it: nothing but that kernel is allowed here."""
    backbone = timm.create_model("eva_still_patch12_48", num_heads=3).eval()
    randomise(backbone)
    model = build_method(method, backbone, 3, 4, METHODS[method].Config()).to(gpu)
    clips = torch.randn(2, 3, 4, 48, 48, device=gpu)
    kernel = sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    with kernel, torch.autocast("cuda", torch.bfloat16):
        model.train()(clips).float().sum().backward()
        assert model.eval()(clips).isfinite().all()
