"""Training on a GPU: the same bits again, also after a stop; fp16's loss scale; memory of counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from moving_clips import T
from tiny import randomise, tiny_vit
from trainings import trainer, weights

from vidpipe.data.mixing import PairMixer
from vidpipe.device import autocast_dtype, choose_device, set_determinism
from vidpipe.errors import TrainingStopped
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import cost, memory
from vidpipe.training.loop import Trainer
from vidpipe.training.state import Checkpoints

pytestmark = pytest.mark.gpu
VARIANTS: dict[str, dict[str, Any]] = {
    "st_adapter": {"accumulate": 2, "ema_decay": 0.9},
    "aim": {"clip_grad_norm": 0.5, "activation_gb": 0},
    "zeroi2v": {"precision": "fp32", "mixer": PairMixer(0.4, 0.4, 1)},
    "full_finetune": {"precision": "fp16", "loader_workers": 1},
}


def build(device: torch.device, name: str, folder: Path | None = None) -> Trainer:
    # Heads of 16 channels, which the fused attention kernels take, and with them their backward.
    torch.manual_seed(0)
    vit = tiny_vit(embed_dim=64)
    options = {"lr": 1e-2, "head_dropout": 0.3}
    model = build_method(name, vit, 2, T, METHODS[name].Config.model_validate(options))
    randomise(model.head)
    kept = Checkpoints(folder) if folder else None
    variant = {"epochs": 3, "checkpoint_every": 2, **VARIANTS[name]}
    return trainer(model, 32, device=device, checkpoints=kept, **variant)


def ended(run: Trainer) -> tuple[dict[str, torch.Tensor], list[Any]]:
    with set_determinism():
        run.run()
    return weights(run.model), run.progress.history


def assert_same(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    assert a[1] == b[1]
    assert all(torch.equal(a[0][name], b[0][name]) for name in a[0])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_training_gives_the_same_bits_again(device: torch.device, name: str) -> None:
    run = build(device, name)
    first = ended(run)
    assert {p.device.type for p in run.model.parameters()} == {device.type}
    assert any(
        not torch.equal(p, weights(build(device, name).model)[n]) for n, p in first[0].items()
    )
    torch.manual_seed(1)  # other random numbers than the first found
    assert_same(ended(build(device, name)), first)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_stopped_training_goes_on_to_the_same_bits(
    device: torch.device, name: str, tmp_path: Path
) -> None:
    whole = ended(build(device, name))
    run = build(device, name, tmp_path)
    asked = iter([False, False, True])
    run.stop = lambda: next(asked)
    with set_determinism(), pytest.raises(TrainingStopped):
        run.run()
    again = build(device, name, tmp_path)
    assert again.progress.step == 3
    assert_same(ended(again), whole)


def test_what_auto_is_on_this_machine(gpu: torch.device) -> None:
    assert choose_device("auto") == choose_device("yes") == torch.device("cuda")
    assert choose_device("no") == torch.device("cpu")
    assert autocast_dtype("auto", choose_device("auto")) == torch.bfloat16


def test_determinism_is_not_only_a_warning(gpu: torch.device) -> None:
    """Attention's backward pass adds in any order unless torch is to raise."""
    q = torch.randn(8, 4, 1024, 64, device=gpu, dtype=torch.bfloat16, requires_grad=True)

    def gradient() -> torch.Tensor:
        q.grad = None
        torch.nn.functional.scaled_dot_product_attention(q, q, q).square().sum().backward()
        assert q.grad is not None
        return q.grad.clone()

    with set_determinism():
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(20))
    assert not torch.are_deterministic_algorithms_enabled()


def test_counting_costs_no_memory_of_the_gpu(gpu: torch.device) -> None:
    model: VideoModel = build_method("aim", tiny_vit(), 2, T, METHODS["aim"].Config()).to(gpu)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cost(model, 32), memory(model, 32)
    assert torch.cuda.max_memory_allocated() == before
