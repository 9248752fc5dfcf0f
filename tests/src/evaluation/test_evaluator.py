"""How an evaluator computes: in which precision, and which processes decode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import backbone_file, tiny_model
from small_store import UNIFORM, small_store
from tiny import randomise, tiny_vit
from torch.utils.data import get_worker_info

from vidpipe.data.config import TransformConfig
from vidpipe.data.dataset import Clips, ViewSet, loader_workers
from vidpipe.device import autocast_dtype
from vidpipe.evaluation.evaluate import Evaluator, joined, predict
from vidpipe.inference.segments import Segment
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.predictor import Predictor


@pytest.fixture
def one(tmp_path: Path) -> Evaluator:
    model = build_method("aim", tiny_vit(), 2, UNIFORM.num_frames, METHODS["aim"].Config())
    randomise(model)
    clips = Clips(small_store(tmp_path), "train", ["a", "b"])
    views = ViewSet(clips, UNIFORM, TransformConfig(size=32), 1, 3)
    return Evaluator(model.eval(), views, ((0.5,) * 3, (0.5,) * 3), batch_size=2)


def test_loader_processes_decode_and_change_no_bit(one: Evaluator) -> None:
    whole = predict(one)
    seen: list[bool] = []

    class Watched(ViewSet):
        def __getitem__(self, i: int) -> dict[str, Any]:
            sample = super().__getitem__(i)
            seen.append(
                get_worker_info() is not None
            )  # of a process of its own, this list is another
            return {**sample, "by_loader": get_worker_info() is not None}

    views = one.views
    watched = Watched(views.clips, UNIFORM, TransformConfig(size=32), 1, views.spatial_crops)
    beside = replace(one, views=watched, loader_workers=2)
    parts = list(beside.by_batch(range(len(watched))))
    assert seen == []
    found = joined(parts)
    assert torch.equal(found["probabilities"], whole.probabilities)
    assert torch.equal(found["shuffled"], whole.orders["shuffled"])
    list(replace(beside, loader_workers=None).by_batch(range(3)))  # on a CPU: none
    assert seen == [False] * 3


def test_precision_is_exact_on_a_cpu_unless_told_otherwise(one: Evaluator) -> None:
    exact = predict(one).probabilities
    assert torch.equal(predict(replace(one, precision="fp32")).probabilities, exact)
    rounded = predict(replace(one, precision="bf16")).probabilities
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.2


def test_what_auto_is_on_each_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [autocast_dtype("auto", d) for d in (cpu, gpu)] == [None, torch.bfloat16]
    assert [autocast_dtype("fp32", d) for d in (cpu, gpu)] == [None, None]
    assert loader_workers(None, cpu) == 0
    assert loader_workers(None, gpu) > 0
    assert [loader_workers(3, d) for d in (cpu, gpu)] == [3, 3]
    assert loader_workers(0, gpu) == 0


def test_a_prediction_is_as_exact(tmp_path: Path) -> None:
    trained = tiny_model(backbone_file(tmp_path / "w.safetensors"))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 36, 36, 3), dtype=np.uint8)
    segment = Segment(0.0, 1.0, frames, (np.arange(4)[None],))
    cpu = torch.device("cpu")
    exact, same, rounded = (
        Predictor({"m": trained}, 1, 1, cpu, precision)([segment])[0]["m"]
        for precision in ("auto", "fp32", "bf16")
    )
    assert torch.equal(exact, same)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.2
