"""Attentive probe (V-JEPA 2, arXiv 2506.09985, section on frozen evaluation): a small transformer on all
frozen tokens of the clip.

x = tokens + embedding of their frame;  x += attn(norm x), x += mlp(norm x)   (`num_blocks` times)
q += cross(q, norm x);  q += mlp(norm q);  head(q), with one learned query q

No gradient passes the backbone. As in the authors' code the cross-attention has no output projection,
layers start at N(0, 0.02), and the last layer of branch i is divided by sqrt(2 i). Their backbone knows
its frames; an image model does not, so the embedding of time is learned here. It starts as sines and
cosines (Vaswani et al., 2017), about as large as the normed tokens: from zero, a training does not find
the order of frames (`tests/src/methods/test_frozen_rivals.py`).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import AttentiveProbeConfig, channels
from vidpipe.methods.temporal_embedding import TemporalEmbedding


def sine_positions(count: int, width: int) -> Tensor:
    """(count, width): sines, then cosines, of wavelengths from 2 pi to 20,000 pi."""
    frequency = 10_000 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(count)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]


class CrossBlock(nn.Module):
    """Queries (B, Q, D) read tokens (B, S, D) -> (B, Q, D): 11 D^2 weights at an MLP ratio of 4."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.mlp = Mlp(width, channels(width, mlp_ratio, "mlp_ratio"))

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        k, v = self.kv(self.norm1(tokens)).chunk(2, dim=-1)
        read = F.scaled_dot_product_attention(heads(self.q(query)), heads(k), heads(v))
        query = query + read.transpose(1, 2).flatten(2)
        return cast(Tensor, query + self.mlp(self.norm2(query)))


class AttentiveProbe(VideoModel):
    name = "attentive_probe"
    Config = AttentiveProbeConfig
    config: AttentiveProbeConfig
    not_mergeable = "its transformer follows the backbone, as a network of its own"
    starts_as_image_model = False
    reads_pooled_only = False

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: AttentiveProbeConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        heads, ratio = self.blocks[0].num_heads, config.mlp_ratio
        self.temporal_embedding = TemporalEmbedding(num_frames, self.width)
        self.query = nn.Parameter(torch.empty(1, 1, self.width))
        self.cross = CrossBlock(self.width, heads, ratio)  # first: it refuses a ratio of nothing
        self.probe = nn.ModuleList(
            Block(self.width, heads, ratio, qkv_bias=True, norm_layer=LayerNorm)
            for _ in range(config.num_blocks)
        )
        self._init()
        self.declare(self.temporal_embedding, self.query, self.probe, self.cross)

    @torch.no_grad()
    def _init(self) -> None:
        own = self.temporal_embedding.weight
        own.copy_(sine_positions(*own.shape[1:]))
        nn.init.trunc_normal_(self.query, std=0.02)
        for part in (*self.probe.modules(), *self.cross.modules()):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        for index, block in enumerate(cast(list[Block], self.probe), start=1):
            for layer in (cast(nn.Linear, block.attn.proj), cast(Mlp, block.mlp).fc2):
                layer.weight /= (2 * index) ** 0.5
        self.cross.mlp.fc2.weight /= (2 * (len(self.probe) + 1)) ** 0.5

    def block_of(self, name: str) -> int | None:
        return super().block_of(name) if name.startswith("vit.") else None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        spared = name in ("query", "temporal_embedding.weight")
        return not spared and super().decays(name, parameter)

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """Final norm on every token (`fc_norm`, where the image model has that instead), then the probe
        over all T*N of them."""
        x = self.temporal_embedding(self.view.norm(x), num_frames)
        x = x.unflatten(0, (-1, num_frames)).flatten(1, 2)
        for block in self.probe:
            x = block(x)
        # A copy: without autograd, torch's FLOP counter stumbles over a view of a parameter.
        feature = self.cross(self.query.repeat(x.shape[0], 1, 1), x)[:, 0]
        return cast(Tensor, self.head(self.head_dropout(feature)))
