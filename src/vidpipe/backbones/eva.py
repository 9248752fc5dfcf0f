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
    QKV,
    BlockView,
    Part,
    attention_refusal,
    mlp_refusal,
    overwrite_linear,
)
from vidpipe.backbones.ops import project
from vidpipe.backbones.view import ImageView, replaced, unpooled
from vidpipe.errors import VidpipeError


class EvaBlockView(BlockView):
    """A block of `Eva`, whose attention reads the positions from the model."""

    def __init__(self, module: nn.Module, index: int, view: EvaView) -> None:
        super().__init__(module)
        self.index, self.view = index, view

    def scale1(self, x: Tensor) -> Tensor:
        return _scaled(cast(Any, self.module).gamma_1, x)

    def scale2(self, x: Tensor) -> Tensor:
        return _scaled(cast(Any, self.module).gamma_2, x)

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.attn
        if attn.qkv is not None:
            return project(attn.qkv.weight, _joint_bias(attn), x, queries)
        # A copy of few tokens: a linear layer on a slice is a batched product.
        few = x if queries is None else x[:, :queries].contiguous()
        return attn.q_proj(few), attn.k_proj(x), attn.v_proj(x)

    def place(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().place(q, k)
        rope = self.view.rope(self.index)
        if rope is None:
            return q, k
        first = k.shape[-2] - rope.shape[-2]  # patches are the last tokens, whatever stands before
        half = self.attn.rotate_half
        return _rotated(q, rope, first, half), _rotated(k, rope, first, half)

    def affine_qkv(self, part: Part) -> tuple[Tensor, Tensor | None]:
        if self.attn.qkv is None:
            layer = getattr(self.attn, f"{part}_proj")
            return layer.weight, layer.bias
        bias, own = _joint_bias(self.attn), QKV.index(part)
        return self.attn.qkv.weight.chunk(3)[own], None if bias is None else bias.chunk(3)[own]

    def overwrite_qkv(self, part: Part, weight: Tensor, bias: Tensor | None) -> None:
        if self.attn.qkv is None:
            overwrite_linear(getattr(self.attn, f"{part}_proj"), weight, bias)
            return
        if bias is not None:
            self._join_bias()
        super().overwrite_qkv(part, weight, bias)

    def open_biases(self) -> None:
        if self.attn.qkv is not None:
            self._join_bias()
        super().open_biases()

    def _join_bias(self) -> None:
        """Make the joint projection's bias one of its layer, which has a place for k's."""
        attn = self.attn
        if (bias := _joint_bias(attn)) is not None and attn.qkv.bias is None:
            overwrite_linear(attn.qkv, attn.qkv.weight, bias.detach())
            attn.q_bias = attn.k_bias = attn.v_bias = None


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


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


def _rotated(x: Tensor, rope: Tensor, first: int, half: bool) -> Tensor:
    """Tokens (B, heads, N, d) from `first` on turned; fewer tokens than that stay as they are."""
    if x.shape[-2] <= first:
        return x
    turned = apply_rot_embed_cat(x[..., first:, :], rope, half=half).type_as(x)
    return torch.cat([x[..., :first, :], turned], dim=-2)


def _joint_bias(attn: Any) -> Tensor | None:
    if attn.qkv.bias is not None:
        return cast(Tensor, attn.qkv.bias)
    if getattr(attn, "q_bias", None) is None:
        return None
    return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])


def eva_refusal(model: Eva) -> str | None:
    """Why methods cannot promise the features of an `Eva`; None: they can."""
    reasons = (_block_refusal(block, model.embed_dim) for block in model.blocks)
    found = replaced(model, Eva) or unpooled(model)
    return found or next((reason for reason in reasons if reason), None)


def _block_refusal(block: nn.Module, width: int) -> str | None:
    if type(block) is not EvaBlock:
        return f"has {type(block).__name__} blocks, whose norms follow attention and MLP"
    attn = cast(Any, block.attn)
    if type(attn) not in (EvaAttention, AttentionRope):
        return f"has {type(attn).__name__}, which no method can adapt yet"
    if getattr(attn, "num_kv_groups", 1) > 1:
        return "has grouped-query attention: fewer keys and values than heads to shift or fold"
    return attention_refusal(attn, width) or mlp_refusal(block.mlp)
