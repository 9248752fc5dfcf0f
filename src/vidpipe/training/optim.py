"""The optimizer: AdamW by groups, with linear warm-up and cosine to zero (all three papers)."""

from __future__ import annotations

import math

import torch
from torch import nn

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.training.config import TrainConfig

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch has AdamW as one kernel."""


def trained_parameters(model: VideoModel) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def make_optimizer(
    model: VideoModel, config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    peak = model.config.peak_lr(config.batch_size)
    return torch.optim.AdamW(
        model.parameter_groups(lr=peak),
        lr=peak,
        betas=config.betas,
        fused=device.type in FUSED,
    )


def lr_factor(
    step: int, warmup: float, total: int, *, start: float = 0.0, epoch: int | None = None
) -> float:
    """The fraction of the peak learning rate at `step`, counted from 0: a linear warm-up from `start`
    over `warmup` steps, and a cosine to zero at `total` steps.

    The cosine begins where the warm-up ends and falls in every step, as in ST-Adapter's code. With
    `epoch`, the steps of an epoch, it begins with the training, changes between epochs only, and the
    warm-up is a factor of it: the schedulers of mmcv and mmengine that AIM and ZeroI2V use.
    """
    rise = start + (1 - start) * step / warmup if step < warmup else 1.0
    if epoch is not None:
        return rise * _cosine(step // epoch * epoch / total)
    return rise if step < warmup else _cosine((step - warmup) / max(1.0, total - warmup))


def _cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def refuse_frozen_gradients(model: VideoModel) -> None:
    """Raises VidpipeError where a gradient was computed for what the method did not declare."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name not in model.trained_names:
            raise VidpipeError(
                f"{name} is frozen and received a gradient; the method {model.name} must name it in "
                "declare(), or leave its requires_grad alone"
            )
