"""The view of timm's `Eva`: EVA-02, DINOv3, Perception Encoder, ROPE-ViT, with or without their CLIPs.

What differs from a plain ViT: rotary positions (RoPE) turn the queries and keys of patches; q, k and v
come from one matrix, whose bias is in two parts with none for k, or from three; LayerScale is a bare
parameter.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import AttentionRope, RotaryEmbeddingMixed, apply_rot_embed_cat
from timm.layers.pos_embed_sincos import get_mixed_freqs
from timm.models import Eva
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn

from vidpipe.backbones.block import (
    BlockView,
    Part,
    overwrite_linear,
)
from vidpipe.backbones.joint_bias import JointBiasView, scaled
from vidpipe.backbones.view import ImageView, blocks_refusal, replaced, unpooled
from vidpipe.errors import VidpipeError


class EvaBlockView(JointBiasView):
    """A block of `Eva`, whose attention reads the positions from the model."""

    def __init__(self, module: nn.Module, index: int, view: EvaView) -> None:
        super().__init__(module)
        self.index, self.view = index, view

    def scale1(self, x: Tensor) -> Tensor:
        return scaled(cast(Any, self.module).gamma_1, x)

    def scale2(self, x: Tensor) -> Tensor:
        return scaled(cast(Any, self.module).gamma_2, x)

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is not None:
            return super().project(x, queries)
        # A copy of few tokens: a linear layer on a slice is a batched product.
        few = x if queries is None else x[:, :queries].contiguous()
        return attn.q_proj(few), attn.k_proj(x), attn.v_proj(x)

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().place(q, k)
        rope = self.view.rope(self.index)
        if rope is None:
            return q, k
        kept = self.view.kept
        if kept is not None:  # (P, 2d) or (heads, P, 2d) -> (B*T, 1 or heads, n, 2d)
            rope = rope[None, kept] if rope.ndim == 2 else rope[:, kept]
            rope = rope.transpose(0, 1)
        first = k.shape[-2] - rope.shape[-2]  # patches are the last tokens, whatever stands before
        half = self.attn.rotate_half
        return _rotated(q, rope, first, half), _rotated(k, rope, first, half)

    def affine_qkv(self, part: Part) -> tuple[Tensor, Tensor | None]:
        if self.attn.qkv is not None:
            return super().affine_qkv(part)
        layer = getattr(self.attn, f"{part}_proj")
        return layer.weight, layer.bias

    def overwrite_qkv(self, part: Part, weight: Tensor, bias: Tensor | None) -> None:
        if self.attn.qkv is not None:
            super().overwrite_qkv(part, weight, bias)
        else:
            overwrite_linear(getattr(self.attn, f"{part}_proj"), weight, bias)

    def _join_bias(self) -> None:
        if self.attn.qkv is not None:
            super()._join_bias()


class EvaView(ImageView):
    """An `Eva` that `eva_refusal` finds nothing against."""

    def _blocks(self) -> list[BlockView]:
        return [EvaBlockView(block, index, self) for index, block in enumerate(self.vit.blocks)]

    def embed(self, frames: Tensor) -> Tensor:
        x = self.vit.patch_embed(frames)
        if self.vit.dynamic_img_size and x.shape[1:3] != self.grid:
            raise VidpipeError(
                f"clip has {tuple(frames.shape[2:])} pixels, but the backbone is for "
                f"{tuple(self.vit.patch_embed.img_size)}"
            )
        return cast(Tensor, self.vit._pos_embed(x)[0])

    def rope(self, index: int) -> Tensor | None:
        """Sine and cosine of the positions for block `index`, (P, 2 * head width) or, where each head
        has its own, (heads, P, 2 * head width). None: the model has none."""
        rope = self.vit.rope
        if rope is None:
            return None
        if isinstance(rope, RotaryEmbeddingMixed):
            # One block's, since timm computes all blocks' at once.
            x, y = (
                (rope.t_x, rope.t_y)
                if rope.t_x is not None
                else rope._get_grid_values([*self.grid])
            )
            return get_mixed_freqs(rope.freqs[:, index], x, y)
        fixed = getattr(rope, "feat_shape", None) is not None
        return cast(Tensor, rope.get_embed() if fixed else rope.get_embed(shape=[*self.grid]))


def _rotated(x: Tensor, rope: Tensor, first: int, half: bool) -> Tensor:
    """Tokens (B, heads, N, d) from `first` on turned; fewer tokens than that stay as they are."""
    if x.shape[-2] <= first:
        return x
    turned = apply_rot_embed_cat(x[..., first:, :], rope, half=half).type_as(x)
    return torch.cat([x[..., :first, :], turned], dim=-2)


def eva_refusal(model: Eva) -> str | None:
    """Why methods cannot promise the features of an `Eva`; None: they can."""
    return (
        replaced(model, Eva)
        or unpooled(model)
        or blocks_refusal(model, (EvaBlock,), (EvaAttention, AttentionRope))
    )
