"""Methods on a tiny Swin."""

from __future__ import annotations

import torch
from timm.models import SwinTransformer
from tiny import randomise

from vidpipe.methods.registry import METHODS, VideoModel, build_method

T, SIZE, CLASSES = 4, 56, 7


def tiny_swin(size: int = SIZE) -> SwinTransformer:
    torch.manual_seed(0)
    swin = SwinTransformer(size, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=0)
    randomise(swin)
    return swin.eval()


def build(
    name: str, options: dict, nonzero: bool = True, size: int = SIZE, seed: int = 0
) -> VideoModel:
    swin = tiny_swin(size)
    torch.manual_seed(seed)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, swin, CLASSES, T, config)
    if nonzero:
        for parameter in model.adapter_state().values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def clip(batch: int = 2, frames: int = T, size: int = SIZE) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(batch, 3, frames, size, size)
