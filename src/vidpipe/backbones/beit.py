"""The view of timm's `Beit`: BEiT and BEiT v2.

What differs from a plain ViT: attention within a frame adds a learned bias for the offset of each pair
of tokens, of each block's own or one for all; q, k and v are EVA's (`joint_bias`); LayerScale is a bare
parameter. Attention over time adds no bias: its tokens have one position.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import Beit
from timm.models.beit import Attention, Block
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.backbones.joint_bias import JointBiasView, scaled
from vidpipe.backbones.view import ImageView, blocks_refusal, replaced, unpooled


class BeitBlockView(JointBiasView):
    """A block of `Beit`, whose attention may add the model's shared bias."""

    def __init__(self, module: nn.Module, vit: Any) -> None:
        super().__init__(module)
        self.vit = vit

    def scale1(self, x: Tensor) -> Tensor:
        return scaled(cast(Any, self.module).gamma_1, x)

    def scale2(self, x: Tensor) -> Tensor:
        return scaled(cast(Any, self.module).gamma_2, x)

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def inner_norm(self, x: Tensor) -> Tensor:
        return x

    def bias(self, tokens: int) -> Tensor | None:
        """Zero from and to tokens that a method inserts between class token and patches (prompts)."""
        own = self.attn.relative_position_bias_table is not None
        bias = cast(Tensor | None, self.attn._get_rel_pos_bias() if own else None)
        if self.vit.rel_pos_bias is not None:
            shared = self.vit.rel_pos_bias()[None]
            bias = shared if bias is None else bias + shared
        if bias is None or (inserted := tokens - bias.shape[-1]) == 0:
            return bias
        first, rest = bias.split([1, bias.shape[-1] - 1], dim=-1)
        bias = torch.cat([F.pad(first, (0, inserted)), rest], dim=-1)
        first, rest = bias.split([1, bias.shape[-2] - 1], dim=-2)
        return torch.cat([F.pad(first, (0, 0, 0, inserted)), rest], dim=-2)


class BeitView(ImageView):
    """A `Beit` that `beit_refusal` finds nothing against."""

    def _blocks(self) -> list[BlockView]:
        return [BeitBlockView(block, self.vit) for block in self.vit.blocks]

    @property
    def whole_grid(self) -> str | None:
        own = any(b.attn.relative_position_bias_table is not None for b in self.vit.blocks)
        if own or self.vit.rel_pos_bias is not None:
            return "its attention has a bias for each pair of patches"
        return None

    def embed(self, frames: Tensor) -> Tensor:
        x = self.vit.patch_embed(frames)
        x = torch.cat([self.vit.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x if self.vit.pos_embed is None else x + self.vit.pos_embed

    def norm_pre(self, x: Tensor) -> Tensor:
        return x

    def _mean(self, x: Tensor) -> Tensor:
        return x[:, self.num_prefix_tokens :].mean(1)


def beit_refusal(model: Beit) -> str | None:
    """Why methods cannot promise the features of a `Beit`; None: they can."""
    return replaced(model, Beit) or unpooled(model) or blocks_refusal(model, (Block,), (Attention,))
