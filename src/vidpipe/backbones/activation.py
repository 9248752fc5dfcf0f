"""CLIP's activation, keeping half of what autograd would."""

from __future__ import annotations

from typing import Any, cast

import timm.layers
import torch
from torch import Tensor, nn

from vidpipe.backbones.swin import SWINS, blocks_of_stage, stages_of


class QuickGELU(timm.layers.QuickGELU):
    """x * sigmoid(1.702 x), to timm's bits. For the backward pass it keeps x, not x and the sigmoid: on
    a ViT-B that is 18.5 MiB a block less for each clip of 8 frames."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _KeepsInput.apply(x)  # type: ignore[no-untyped-call, no-any-return]
        return _quick_gelu(x)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class _KeepsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _quick_gelu(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        # x sigmoid(a x) is silu(a x) / a, so its derivative is silu's at a x.
        return torch.ops.aten.silu_backward(gradient, 1.702 * ctx.saved_tensors[0])


def keep_less(vit: nn.Module) -> None:
    """Have each of timm's QuickGELUs replaced by ours."""
    for block in cast(Any, vit).blocks:
        if type(block.mlp.act) is timm.layers.QuickGELU:
            block.mlp.act = QuickGELU()


def activation_of(vit: Any) -> str:
    """Of its MLPs, by timm's name in small letters, such as `quickgelu`."""
    blocks = blocks_of_stage(stages_of(vit)[0]) if isinstance(vit, SWINS) else vit.blocks
    return type(cast(Any, blocks[0]).mlp.act).__name__.lower()
