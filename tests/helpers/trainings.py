"""Trainings of a few steps, and what is compared of them."""

from __future__ import annotations

from typing import Any

import torch
from moving_clips import HALF, Moving, T
from tiny import tiny_vit

from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.config import TrainConfig
from vidpipe.training.loop import Trainer
from vidpipe.training.optim import trained_parameters

CPU = torch.device("cpu")


def settings(**config: object) -> TrainConfig:
    base = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0.5, "threads": 1, **config}
    return TrainConfig.model_validate(base)


def make(name: str = "st_adapter", **options: object) -> VideoModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options = {"lr": 1e-2, "head_dropout": 0.0, **({"drop_path": 0.0} if name == "aim" else {})} | (
        options
    )
    model = build_method(name, tiny_vit(), 2, T, METHODS[name].Config.model_validate(options))
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def trainer(model: VideoModel, size: int = 16, **config: Any) -> Trainer:
    names = ("mixer", "checkpoints", "stop", "on_step", "device", "labels")
    extra = {name: config.pop(name) for name in names if name in config}
    return Trainer(model, Moving(size, False), Moving(8, True), settings(**config), HALF, **extra)


def weights(model: VideoModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trained_parameters(model).items()}


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=tolerance, msg=name)


def first_gradients(model: VideoModel, **config: Any) -> dict[str, torch.Tensor]:
    """Of the first step, before clipping and the optimizer."""
    run = trainer(model, epochs=1, warmup_epochs=0, **config)
    seen: dict[str, torch.Tensor] = {}

    def stop() -> bool:
        seen.update({n: p.grad.clone() for n, p in run.trained.items() if p.grad is not None})
        return False

    run.stop = stop
    run.total_steps = 1
    list(run.steps())
    return seen
