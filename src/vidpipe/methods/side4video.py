"""Side4Video (Yao et al., arXiv 2311.15769): a narrow video network beside the frozen image model.

s = norm(conv(video)), a 3 x p x p convolution with stride 1 x p x p: the side's tokens, one a patch
After each frozen block, with y its tokens and r = Linear(norm y):
s = (s + r[patches]) / 2;  s += convolution over time(norm s)
s += attn(queries s, keys and values [shifted r[class token], s + position]);  s += mlp(norm s)
The head reads the mean over patches and frames of norm(s).

No gradient passes the backbone. Of the class token's channels half come from frame t + 1 and half from
t - 1, zero outside the clip, so that attention within a frame sees the frames beside it. A backbone
without a class token has patches as keys only. Shapes and starting values are those of the authors'
code.

A deviation: their norms of convolutions, MLPs, stem and output are BatchNorm3d, with which a clip's
logits depend on the other clips of its batch in training. Here all are LayerNorms over the channels of
a token, of as many parameters, so that a training is the same on any number of workers and in any
parts of a batch, as is promised of every method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.ops import fold_frames
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import Side4VideoConfig, channels
from vidpipe.methods.frozen_reader import FrozenReader
from vidpipe.methods.patch_drop import only
from vidpipe.methods.text_head import make_head

HEAD_WIDTH = 64
"""Channels of an attention head of the side network; a narrower network has one head."""


class TemporalBottleneck(nn.Module):
    """Linear, depthwise convolution over 3 frames, Linear; without an activation, of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        y = self.fc1(x).unflatten(0, (-1, num_frames))
        # A 2-D convolution over (T, N): the permuted tokens already lie in memory as channels-last.
        y = F.conv2d(
            y.permute(0, 3, 1, 2),
            self.conv.weight[..., None],
            self.conv.bias,
            padding=(1, 0),
            groups=self.conv.groups,
        )
        return cast(Tensor, self.fc2(y.permute(0, 2, 3, 1).flatten(0, 1)))


def shift_halves(x: Tensor, num_frames: int) -> Tensor:
    """(B*T, N, W): the first half of the channels from frame t + 1, the others from t - 1; zero where
    there is no such frame."""
    after, before = x.unflatten(0, (-1, num_frames)).split(
        [x.shape[-1] // 2, x.shape[-1] - x.shape[-1] // 2], dim=-1
    )
    after = F.pad(after[:, 1:], (0, 0, 0, 0, 0, 1))
    before = F.pad(before[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat([after, before], dim=-1).flatten(0, 1)


class SideBlock(nn.Module):
    """One step of the side network; its attention is as wide as it."""

    def __init__(self, backbone_width: int, width: int, mlp_ratio: float, depth: int) -> None:
        super().__init__()
        self.num_heads = max(1, width // HEAD_WIDTH)
        self.read_norm = nn.LayerNorm(backbone_width)
        self.read = nn.Linear(backbone_width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.temporal = TemporalBottleneck(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = channels(width, mlp_ratio, "mlp_ratio")
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for layer, std in (
            (self.read, (2 * width) ** -0.5),
            (self.qkv, width**-0.5),
            (self.fc1, (2 * width) ** -0.5),
            (self.out, (2 * depth * width) ** -0.5),
            (self.fc2, (2 * depth * width) ** -0.5),
        ):
            nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def tokens(self, y: Tensor) -> Tensor:
        """What the side reads of a frozen block's tokens, (B*T, N, D) -> (B*T, N, W)."""
        return cast(Tensor, self.read(self.read_norm(y)))

    def forward(self, s: Tensor, token: Tensor | None, position: Tensor, num_frames: int) -> Tensor:
        """(B*T, P, W) tokens, (B*T, 1, W) what is read of the class token, (P, W) or (B*T, P, W)."""
        s = s + self.temporal(self.norm1(s), num_frames)
        keys = s + position
        if token is not None:
            keys = torch.cat([shift_halves(token, num_frames), keys], dim=1)
        s = s + self.attention(self.norm2(keys), s.shape[1])
        return cast(Tensor, s + self.fc2(F.gelu(self.fc1(self.norm3(s)))))

    def attention(self, x: Tensor, queries: int) -> Tensor:
        """The last `queries` of the tokens x ask all of them."""

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = self.qkv(x).chunk(3, dim=-1)
        read = F.scaled_dot_product_attention(heads(q[:, -queries:]), heads(k), heads(v))
        return cast(Tensor, self.out(read.transpose(1, 2).flatten(2)))


class Side4Video(FrozenReader):
    name = "side4video"
    Config = Side4VideoConfig
    config: Side4VideoConfig
    not_mergeable = "its side network has layers of its own beside the backbone"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: Side4VideoConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        width, depth = config.side_width, len(self.blocks)
        if width > HEAD_WIDTH and width % HEAD_WIDTH:
            raise VidpipeError(
                f"methods.side4video.side_width: {width}, expected a multiple of {HEAD_WIDTH}, the "
                f"width of a head, or at most {HEAD_WIDTH}"
            )
        rows, columns = self.view.grid
        p = self.view.patch_size
        self.stem = nn.Conv3d(3, width, (3, *p), stride=(1, *p), padding=(1, 0, 0))
        self.stem_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.position = nn.Parameter(torch.empty(rows * columns, width))
        nn.init.normal_(self.position, std=0.01)
        self.side = nn.ModuleList(
            SideBlock(self.width, width, config.mlp_ratio, depth) for _ in range(depth)
        )
        trained: list[nn.Module | nn.Parameter] = [
            *(self.stem, self.stem_norm, self.norm),
            *(self.position, self.side),
        ]
        # A head of texts projects the image model's feature, so the side's is brought to its width.
        self.lift = nn.Linear(width, self.width) if config.head_init == "text" else None
        if self.lift is None:
            self.feature_width = width
            init = (num_classes, config.head_init, self.head_init_std)
            self.head = make_head(vit, width, *init)
        else:
            trained.append(self.lift)
        self.declare(*trained)

    def block_of(self, name: str) -> int | None:
        part = name.split(".")
        if part[0] == "side":
            return int(part[1])
        return -1 if part[0] in ("stem", "stem_norm", "position") else super().block_of(name)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return name != "position" and super().decays(name, parameter)

    def block(self, index: int, block: Any, x: Tensor, num_frames: int) -> Tensor:
        """Step `index` of the side network: its tokens `x` (B*T, P, W), and in the place of the frozen
        block what that gave, (B*T, N, D)."""
        side, kept = cast(SideBlock, self.side[index]), self.view.kept
        position: Tensor = self.position
        read = self.checkpointed(side.tokens, block)
        x = 0.5 * x + 0.5 * read[:, self.view.num_prefix_tokens :]
        if kept is not None:
            position = only(position.expand(len(x), -1, -1), kept, 0)
        token = read[:, :1] if self.view.has_class_token else None
        return cast(Tensor, side(x, token, position, num_frames))

    def read(self, video: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The clips, for the stem, then each frozen block's tokens (B, T, N, D)."""
        yield (video,)
        x, num_frames = self.first_tokens(video), video.shape[2]
        for block in self.blocks:
            x = block(x)
            yield (x.unflatten(0, (-1, num_frames)),)

    def decide(self, blocks: Iterator[tuple[Tensor, ...]]) -> Tensor:
        (video,) = next(blocks)
        num_frames = video.shape[2]
        video = video.contiguous(
            memory_format=torch.channels_last_3d
        )  # as `to_input`, also kept ones
        s = self.stem_norm(fold_frames(self.stem(video)).flatten(2).transpose(1, 2))
        for index, (x,) in enumerate(blocks):
            if index == 0 and self.view.kept is not None:
                s = only(s, self.view.kept, 0)
            s = self.run_block(index, x.flatten(0, 1), s, num_frames)
        feature = self.norm(s).mean(1).unflatten(0, (-1, num_frames)).mean(1)
        if self.lift is not None:
            feature = self.lift(feature)
        return cast(Tensor, self.head(self.head_dropout(feature)))
