"""Attentional pooling: one trained attention over all tokens of the clip, in place of the CLS mean.

The strongest probe of ST-Adapter's Table 1 that leaves the backbone alone (2.36 M on ViT-B/16, which
is one attention of 4 D^2 + 4 D). The query is the mean token, as in CLIP's attention pool; there is
no positional embedding, so the frames' order cannot matter.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import AttentionalPoolingConfig


class PoolingAttention(nn.Module):
    """Queries (B, Q, D) read tokens (B, S, D) -> (B, Q, D): 4 D^2 + 4 D parameters."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        pooled = F.scaled_dot_product_attention(
            heads(self.q(query)), heads(self.k(tokens)), heads(self.v(tokens))
        )
        return cast(Tensor, self.out(pooled.transpose(1, 2).flatten(2)))


class AttentionalPooling(VideoModel):
    name = "attentional_pooling"
    Config = AttentionalPoolingConfig
    order_blind = True
    not_mergeable = "its attention follows the backbone, as a layer of its own"
    starts_as_image_model = False
    reads_pooled_only = False

    def __init__(
        self,
        vit: nn.Module,
        num_classes: int,
        num_frames: int,
        config: AttentionalPoolingConfig,
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.pool = PoolingAttention(self.width, self.blocks[0].num_heads)
        self.declare(self.pool)

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """Final norm on every token (`fc_norm`, where the image model has that instead), one query over
        all T*N of them, dropout, linear."""
        tokens = self.view.norm(x).unflatten(0, (-1, num_frames)).flatten(1, 2)
        feature = self.pool(tokens.mean(1, keepdim=True), tokens)[:, 0]
        return cast(Tensor, self.head(self.head_dropout(feature)))
