"""A plain ViT of four narrow blocks, which this process can have by name: what is told of a backbone's
files and of a model's is the same of twelve."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import nn

NAME = "vit_shallow_patch16_224"
default_cfgs: dict[str, Any] = {}  # which timm asks of a module that registers models


@register_model
def vit_shallow_patch16_224(pretrained: bool = False, **options: Any) -> nn.Module:
    """4 blocks of width 48, 3 heads; `options`: img_size alone is taken."""
    own = {key: options[key] for key in ("img_size",) if key in options}
    small = {"depth": 4, "embed_dim": 48, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **small, **own)
