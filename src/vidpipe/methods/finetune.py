"""The fine-tuning baselines of ST-Adapter's Table 1: what is trained, times how frames are mixed.

Architectures: `space_only` (SA), mean over frames; `divided` (SA+TA), TimeSformer's divided space-time
attention (Bertasius et al., ICML 2021); `shift` (SA+TS), X-ViT's space-time mixing (Bulat et al.,
NeurIPS 2021): keys and values of the neighbouring frames, and a temporal block on top.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vidpipe.backbones.block import QKV, BlockView
from vidpipe.backbones.ops import shift_projection, to_space, to_time
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import FineTuneConfig, PartialConfig, TemporalFineTuneConfig
from vidpipe.methods.temporal_embedding import TemporalEmbedding

Trained = Iterable[nn.Module | nn.Parameter]


class TemporalAttention(nn.Module):
    """`fc(attn(norm x))` over time; attention and norm start from the block's own (as TimeSformer's).

    fc starts at zero, so that the model starts without mixing frames.
    """

    def __init__(self, block: BlockView, width: int) -> None:
        super().__init__()
        self.norm = copy.deepcopy(block.norm1)
        self.attn = Attention(width, num_heads=block.num_heads, qkv_bias=True)
        self.fc = nn.Linear(width, width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self._start_from(block)

    @torch.no_grad()
    def _start_from(self, block: BlockView) -> None:
        """Take the block's weights; a ViT with q and k norms or an inner norm keeps them to itself."""
        maps = [block.affine(part) for part in QKV]
        for layer, own in ((self.attn.qkv, maps), (self.attn.proj, [block.affine("out")])):
            layer.weight.copy_(torch.cat([weight for weight, _ in own]))
            biases = [w.new_zeros(len(w)) if b is None else b for w, b in own]
            cast(Tensor, layer.bias).copy_(torch.cat(biases))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.fc(self.attn(self.norm(x))))


class TemporalHead(nn.Module):
    """X-ViT's head: class token, one block (no qkv bias) over the frames' features, norm, linear."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.block = Block(width, num_heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(x_BTD.shape[0], -1, -1), x_BTD], dim=1)
        return torch.tanh(self.fc(self.norm(self.block(x))[:, 0]))


class FineTune(VideoModel):
    """Base of the four baselines; a subclass says what is `trained`."""

    Config = FineTuneConfig
    config: FineTuneConfig
    not_mergeable = "it trains the backbone itself and adds no adapter"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: FineTuneConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.order_blind = config.architecture == "space_only"
        # `divided` has one class token a clip, `shift` mixes frames and has a head of its own.
        self.starts_as_image_model = config.architecture == "space_only"
        if config.architecture == "divided":
            if not self.view.has_class_token:
                raise VidpipeError(
                    f"methods.{self.name}.architecture: divided needs a backbone with a class token"
                )
            self.temporal = nn.ModuleList(
                TemporalAttention(block, self.width) for block in self.blocks
            )
            self.temporal_embedding = TemporalEmbedding(num_frames, self.width)
        elif config.architecture == "shift":
            heads = self.blocks[0].num_heads
            quarter = self.width // heads // 4
            rest = self.width // heads - 2 * quarter
            self.offsets = ((quarter, -1), (quarter, 1), (rest, 0)) * heads
            self.temporal_head = TemporalHead(self.width, heads)
        self.declare(*self.trained())

    def trained(self) -> Trained:
        raise NotImplementedError

    def temporal_parts(self) -> list[nn.Module]:
        """What the architecture adds to the image model (not the head)."""
        names = ("temporal", "temporal_embedding", "temporal_head")
        return [cast(nn.Module, getattr(self, name)) for name in names if hasattr(self, name)]

    def embed(self, frames: Tensor, num_frames: int) -> Tensor:
        x = self.view.embed(frames)
        if self.config.architecture == "divided":
            # One class token a clip: only patches are told their frame.
            prefix = self.view.num_prefix_tokens
            patches = self.temporal_embedding(x[:, prefix:], num_frames)
            x = torch.cat([x[:, :prefix], patches], dim=1)
        return self.view.norm_pre(x)

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        if self.config.architecture == "divided":
            return self._divided(index, block, x, num_frames)
        if self.config.architecture == "shift":
            return self._shift(index, block, x, num_frames)
        return super().block(index, block, x, num_frames)

    def key_offsets(self, index: int) -> tuple[tuple[int, int], ...]:
        shift = self.config.architecture == "shift"
        return self.offsets if shift else super().key_offsets(index)

    def _divided(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        """Time, then space, then MLP. Every frame carries a copy of the clip's class token."""
        prefix = self.view.num_prefix_tokens
        patches = self.temporal[index](to_time(x[:, prefix:], num_frames))
        x = torch.cat([x[:, :prefix], to_space(patches, x.shape[1] - prefix)], dim=1)
        kept = self.tokens_needed(index)
        branch = block.scale1(block.attention(block.norm1(x), kept))
        shared = branch[:, :prefix].unflatten(0, (-1, num_frames))
        shared = shared.mean(1, keepdim=True).expand_as(shared).flatten(0, 1)
        x = x[:, :kept] + torch.cat([shared, branch[:, prefix:]], dim=1)
        return x + block.scale2(block.mlp(block.norm2(x)))

    def _shift(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        """A quarter of every head's K and V channels from each neighbouring frame."""
        kept = self.tokens_needed(index)
        q, k, v = block.project(block.norm1(x), kept)
        k = shift_projection(k, num_frames, self.offsets)
        v = shift_projection(v, num_frames, self.offsets)
        x = x[:, :kept] + block.scale1(block.out(block.attend(q, k, v)))
        return x + block.scale2(block.mlp(block.norm2(x)))

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        if self.config.architecture != "shift":
            return super().classify(x, num_frames)
        features = self.view.pool(x).unflatten(0, (-1, num_frames))
        return cast(Tensor, self.head(self.head_dropout(self.temporal_head(features))))


class FullFineTune(FineTune):
    """Full fine-tuning, on space-only, divided (TimeSformer) or shifted (X-ViT) attention."""

    name = "full_finetune"

    def trained(self) -> Trained:
        return [self.vit, *self.temporal_parts()]


class Partial(FineTune):
    """Partial fine-tuning: the last blocks and the final norm."""

    name = "partial"
    Config = PartialConfig
    config: PartialConfig

    def trained(self) -> Trained:
        count = self.config.num_blocks
        if count > len(self.blocks):
            raise VidpipeError(
                f"methods.partial.num_blocks: {count}, but the backbone has {len(self.blocks)}"
            )
        parts = [*(block.module for block in self.blocks[-count:]), self.view.norm]
        for part in self.temporal_parts():
            parts += list(part)[-count:] if isinstance(part, nn.ModuleList) else [part]
        return parts


class BitFit(FineTune):
    """BitFit (Ben Zaken et al., ACL 2022): all biases, and what the architecture adds."""

    name = "bitfit"

    def trained(self) -> Trained:
        # EVA and BEiT have those of q and v as `q_bias`, `v_bias`.
        named = self.vit.named_parameters()
        biases = [p for name, p in named if name.endswith((".bias", "_bias"))]
        return [*biases, *self.temporal_parts()]


class TemporalFineTune(FineTune):
    """Temporal fine-tuning: the frozen image model, and everything that mixes frames trained."""

    name = "temporal_finetune"
    Config = TemporalFineTuneConfig

    def trained(self) -> Trained:
        return self.temporal_parts()
