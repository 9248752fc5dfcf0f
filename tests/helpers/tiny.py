"""A tiny ViT, and parameters that are nowhere zero."""

from __future__ import annotations

import torch
from timm.models import VisionTransformer
from torch import nn


def tiny_vit(seed: int = 0, **kwargs: object) -> VisionTransformer:
    """3 blocks of width 48, 4 heads, 4 x 4 patches, with LayerScale unless told otherwise."""
    torch.manual_seed(seed)
    options: dict = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 0,
        "init_values": 0.5,
    }
    vit = VisionTransformer(**{**options, **kwargs})
    randomise(vit)
    return vit.eval()


def randomise(module: nn.Module, seed: int = 1) -> None:
    """Every parameter non-zero: adapters that start at zero would make most tests pass unread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
