"""EVL (Lin et al., ECCV 2022): a transformer decoder reads the frozen features of the last blocks.

For each of the last blocks, with y its tokens (before the final norm) and q one token for the clip:

y += conv(y over time) + temporal embedding + cross-frame attention      (section 3.3)
q += attn(ln_1 q, ln_3 y);  q += mlp(ln_2 q)                             (section 3.2)

The backbone runs without a graph: no gradient passes it, so training needs little memory. All
temporal modules start at zero, so the model is blind to the order of the frames at first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.backbones.ops import fold_frames
from vidpipe.errors import VidpipeError
from vidpipe.methods.attentional_pooling import PoolingAttention
from vidpipe.methods.config import EVLConfig, channels
from vidpipe.methods.frozen_reader import FrozenReader
from vidpipe.methods.noise import ClipDropout
from vidpipe.methods.temporal_embedding import TemporalEmbedding


class Features(NamedTuple):
    """What is read of one frozen block."""

    tokens: Tensor
    """(B*T, N, D), the block's output."""
    backward: Tensor | None = None
    """(B, T-1, P, P): where the P patches of frames 1..T-1 attend to in the frame before."""
    forward: Tensor | None = None
    """(B, T-1, P, P): the same of frames 0..T-2 and the frame after."""


def adjacent_attention(
    block: BlockView, q: Tensor, k: Tensor, num_frames: int, prefix: int
) -> tuple[Tensor, Tensor]:
    """`Features.backward` and `.forward` from a block's projected q, k (B*T, N, D): mean over heads."""
    tokens = q.shape[1]
    q, k = (x[:, :, prefix:].unflatten(0, (-1, num_frames)) for x in block.place(q, k))
    bias = block.bias(tokens)
    own = 0.0 if bias is None else bias[..., prefix:, prefix:]
    q, k = q * block.scale, k.transpose(-2, -1)
    return (
        (q[:, 1:] @ k[:, :-1] + own).softmax(-1).mean(2),
        (q[:, :-1] @ k[:, 1:] + own).softmax(-1).mean(2),
    )


class TemporalConv(nn.Module):
    """x + depthwise Conv1d over time, kernel 3, at each token position; zero at start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        # A 2-D convolution over (T, N): the permuted tokens already lie in memory as channels-last.
        y = F.conv2d(
            x.unflatten(0, (-1, num_frames)).permute(0, 3, 1, 2),
            self.conv.weight[..., None],
            self.conv.bias,
            padding=(1, 0),
            groups=self.conv.groups,
        )
        return x + y.permute(0, 2, 3, 1).flatten(0, 1)


class CrossFrameAttention(nn.Module):
    """Attention maps to features: sum over patches k of map[q, k] * table[offset of k from q].

    One table ((2H-1)(2W-1), D) for each direction in time, zero at start. Only the tables are
    trained; the maps are constants to autograd, so it keeps no (P, P, D) weights for its backward.
    """

    index: Tensor

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        height, columns = grid
        offsets = (2 * height - 1) * (2 * columns - 1)
        self.backward_table = nn.Parameter(torch.zeros(offsets, width))
        self.forward_table = nn.Parameter(torch.zeros(offsets, width))
        row = torch.arange(height).repeat_interleave(columns)
        column = torch.arange(columns).repeat(height)
        dy = row[None] - row[:, None] + height - 1
        dx = column[None] - column[:, None] + columns - 1
        self.register_buffer("index", dy * (2 * columns - 1) + dx, persistent=False)

    def forward(self, backward: Tensor, forward: Tensor) -> Tensor:
        """Two maps (B, T-1, P, P) -> (B*T, P, D)."""
        past = self._weigh(backward, self.backward_table)
        future = self._weigh(forward, self.forward_table)
        # The first frame has none before it, the last none after.
        y = F.pad(past, (0, 0, 0, 0, 1, 0)) + F.pad(future, (0, 0, 0, 0, 0, 1))
        return y.flatten(0, 1)

    def _weigh(self, maps: Tensor, table: Tensor) -> Tensor:
        # `embedding`, since the backward of an index is much slower.
        return torch.einsum("btqk,qkd->btqd", maps, F.embedding(self.index, table))


class DecoderLayer(nn.Module):
    """One clip token (B, 1, D) through `q += attn(ln1 q, ln3 y)`, `q += mlp(ln2 q)`."""

    def __init__(
        self,
        block: BlockView,
        grid: tuple[int, int],
        width: int,
        num_frames: int,
        config: EVLConfig,
    ) -> None:
        super().__init__()
        self.temporal_conv = TemporalConv(width) if config.temporal_conv else None
        self.temporal_embedding = (
            TemporalEmbedding(num_frames, width) if config.temporal_embedding else None
        )
        self.cross_frame = (
            CrossFrameAttention(grid, width) if config.temporal_cross_attention else None
        )
        self.attn = PoolingAttention(width, block.num_heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        hidden = channels(width, config.mlp_ratio, "mlp_ratio")
        fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for layer in (fc1, fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        activation = copy.deepcopy(block.activation)  # QuickGELU on CLIP, else GELU
        self.mlp = nn.Sequential(fc1, activation, ClipDropout(config.mlp_dropout), fc2)

    def temporal(self, features: Features, num_frames: int, prefix: int) -> Tensor:
        """The block's tokens (B*T, N, D) and what the temporal modules add to them."""
        y = features.tokens
        if self.temporal_conv is not None:
            y = self.temporal_conv(y, num_frames)
        if self.temporal_embedding is not None:
            y = self.temporal_embedding(y, num_frames)
        if self.cross_frame is not None:
            added = self.cross_frame(features.backward, features.forward)
            y = torch.cat([y[:, :prefix], y[:, prefix:] + added], dim=1)
        return y

    def forward(self, q: Tensor, features: Features, num_frames: int, prefix: int) -> Tensor:
        y = self.temporal(features, num_frames, prefix)
        y = self.norm3(y).unflatten(0, (-1, num_frames)).flatten(1, 2)
        q = q + self.attn(self.norm1(q), y)
        return cast(Tensor, q + self.mlp(self.norm2(q)))


class EVL(FrozenReader):
    name = "evl"
    Config = EVLConfig
    config: EVLConfig
    not_mergeable = "its decoder is a network of its own beside the backbone"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: EVLConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        if config.num_layers > len(self.blocks):
            raise VidpipeError(
                f"methods.evl.num_layers: {config.num_layers} decoder layers, but this backbone has "
                f"{len(self.blocks)} blocks to read; set it to at most that"
            )
        self.order_blind = not (
            config.temporal_conv or config.temporal_embedding or config.temporal_cross_attention
        )
        self.per_block = 3 if config.temporal_cross_attention else 1
        self.class_token = nn.Parameter(torch.empty(1, 1, self.width))
        nn.init.normal_(self.class_token, std=0.02)
        self.decoder = nn.ModuleList(
            DecoderLayer(block, self.view.grid, self.width, num_frames, config)
            for block in self.blocks[-config.num_layers :]
        )
        self.norm = nn.LayerNorm(self.width)
        self.declare(self.class_token, self.decoder, self.norm)

    @property
    def whole_grid(self) -> str | None:
        return "its decoder reads frozen blocks with all their patches"

    def block_of(self, name: str) -> int | None:
        part = name.split(".")
        if part[0] == "decoder":
            return len(self.blocks) - self.config.num_layers + int(part[1])
        return super().block_of(name)

    def read(self, video: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Of each block that is read, its tokens (B, T, N, D) and, where they are used, two maps."""
        for features in self.features(video):
            tokens = features.tokens.unflatten(0, (-1, video.shape[2]))
            yield tokens, *(maps for maps in features[1:] if maps is not None)

    def decide(self, blocks: Iterator[tuple[Tensor, ...]]) -> Tensor:
        prefix, q = self.view.num_prefix_tokens, cast(Tensor, self.class_token)
        # Block by block, so that in evaluation the features of one block are held at a time.
        for index, (layer, (tokens, *maps)) in enumerate(zip(self.decoder, blocks, strict=True)):
            if index == 0:
                # A copy: without autograd, torch's FLOP counter stumbles over a view of a parameter.
                q = q.repeat(tokens.shape[0], 1, 1)
            q = layer(q, Features(tokens.flatten(0, 1), *maps), tokens.shape[1], prefix)
        return cast(Tensor, self.head(self.head_dropout(self.norm(q[:, 0]))))

    def features(self, video: Tensor) -> Iterator[Features]:
        """Of the last `num_layers` frozen blocks, in their order; without a graph."""
        num_frames = video.shape[2]
        with torch.no_grad():
            x = self.embed(fold_frames(video), num_frames)
            for block in self.blocks[: -self.config.num_layers]:
                x = block(x)
        for block in self.blocks[-self.config.num_layers :]:
            # Not around the `yield`: the decoder would run without a graph too.
            with torch.no_grad():
                features = self._read(block, x, num_frames)
            yield features
            x = features.tokens

    def _read(self, block: BlockView, x: Tensor, num_frames: int) -> Features:
        """The block as it is, but with q and k at hand."""
        if not self.config.temporal_cross_attention:
            return Features(block(x), None, None)
        q, k, v = block.project(block.norm1(x))
        x = x + block.scale1(block.out(block.attend(q, k, v)))
        x = x + block.scale2(block.mlp(block.norm2(x)))
        prefix = self.view.num_prefix_tokens
        return Features(x, *adjacent_attention(block, q, k, num_frames, prefix))
