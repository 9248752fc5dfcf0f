"""The optimizer: AdamW by groups, with linear warm-up and cosine to zero (all three papers)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vidpipe.methods.base import VideoModel
from vidpipe.training.config import TrainConfig

FUSED = ("cpu", "cuda", "mps", "xpu")
"""Devices on which torch has AdamW as one kernel."""


def trained_parameters(model: VideoModel) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def parameter_groups(model: VideoModel) -> list[dict[str, Any]]:
    """Groups of one weight decay and one `lr_scale` each, the decayed ones first.

    The method says what is decayed (`VideoModel.decays`). The rate is lower for what came with the
    backbone, and, with `layer_decay`, the deeper a parameter's block lies.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for decayed in (True, False):  # there are always both, so that lr has its place
        groups[decayed, 1.0] = []
    for name, parameter in trained_parameters(model).items():
        key = model.decays(name, parameter), lr_scale(model, name)
        groups.setdefault(key, []).append(parameter)
    decay = model.config.weight_decay
    return [
        {"params": parameters, "weight_decay": decay if decayed else 0.0, "lr_scale": scale}
        for (decayed, scale), parameters in sorted(groups.items(), key=lambda item: not item[0][0])
        if parameters
    ]


def lr_scale(model: VideoModel, name: str) -> float:
    """Of the peak learning rate, for parameter `name`."""
    scale = 1.0
    if name.startswith("vit.") and model.config.pretrained_lr_scale is not None:
        scale = model.config.pretrained_lr_scale
    block = model.block_of(name)
    if block is not None:
        scale *= model.config.layer_decay ** (len(model.blocks) - block)
    return scale


def make_optimizer(
    model: VideoModel, config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model),
        lr=model.config.lr,
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


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in; None where it is off and all is fp32."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    dtype = autocast_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
