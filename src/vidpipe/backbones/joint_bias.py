"""A block whose q, k and v come from one matrix, with its bias in two parameters beside it.

BEiT, EVA and Swin V2 learn a bias of q and one of v; k's is a buffer of zeros, since it cancels in the
softmax. An adapter that folds into the matrix has a bias of k, too: with RoPE or cosine attention that
does not cancel, so the merged block has a bias of its layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vidpipe.backbones.block import QKV, BlockView, Part, overwrite_linear
from vidpipe.backbones.ops import project


class JointBiasView(BlockView):
    """What such blocks share, of whichever family."""

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return project(self.attn.qkv.weight, joint_bias(self.attn), x, queries)

    def affine_qkv(self, part: Part) -> tuple[Tensor, Tensor | None]:
        bias, own = joint_bias(self.attn), QKV.index(part)
        return self.attn.qkv.weight.chunk(3)[own], None if bias is None else bias.chunk(3)[own]

    def overwrite_qkv(self, part: Part, weight: Tensor, bias: Tensor | None) -> None:
        if bias is not None:
            self._join_bias()
        super().overwrite_qkv(part, weight, bias)

    def open_biases(self) -> None:
        self._join_bias()
        super().open_biases()

    def _join_bias(self) -> None:
        """Make the joint projection's bias one of its layer, which has a place for k's."""
        attn = self.attn
        if (bias := joint_bias(attn)) is not None and attn.qkv.bias is None:
            overwrite_linear(attn.qkv, attn.qkv.weight, bias.detach())
            attn.q_bias = attn.k_bias = attn.v_bias = None


def joint_bias(attn: Any) -> Tensor | None:
    """The bias of q, k and v, whichever way the attention keeps it; None: it has none."""
    if attn.qkv.bias is not None:
        return cast(Tensor, attn.qkv.bias)
    if getattr(attn, "q_bias", None) is None:
        return None
    return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])


def scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    """LayerScale as a bare parameter, where the block has one."""
    return x if gamma is None else gamma * x
