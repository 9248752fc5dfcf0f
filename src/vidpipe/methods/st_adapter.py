"""ST-Adapter (Pan et al., NeurIPS 2022): a depthwise 3-D convolution in a bottleneck.

`x[patches] += fc2(DWConv3D(fc1(x[patches])))` on the residual stream; CLS bypasses it. The paper
writes an activation, the released code has none (equation 4 and models_adapter.py); we follow the
code, which reproduces the paper's parameter and GFLOPs tables with kernel 3x1x1.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import Position, STAdapterConfig, channels


class Adapter(nn.Module):
    """fc1 -> depthwise Conv3d, zero at start (so the adapted model starts as the image model) -> fc2."""

    def __init__(self, width: int, bottleneck: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, bottleneck)
        padding = cast(tuple[int, int, int], tuple(k // 2 for k in kernel))
        self.conv = nn.Conv3d(bottleneck, bottleneck, kernel, padding=padding, groups=bottleneck)
        self.fc2 = nn.Linear(bottleneck, width)
        for bias in (self.fc1.bias, self.fc2.bias):
            nn.init.zeros_(bias)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor, num_frames: int, prefix: int, grid: tuple[int, int]) -> Tensor:
        # The class token, one of 197, goes along and is left out at the end: cutting it off and putting
        # it back copies all of x, forward and backward.
        y = self._convolve(self.fc1(x).unflatten(0, (-1, num_frames)), prefix, grid).flatten(0, 1)
        patches = torch.arange(x.shape[1], device=x.device)[:, None] >= prefix
        return torch.addcmul(x, self.fc2(y), patches.to(x.dtype))

    def _convolve(self, y_BTNC: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        conv = self.conv
        if conv.kernel_size[1:] == (1, 1):
            # Time only: a 2-D convolution over (T, N). The permuted tokens already lie in memory as
            # channels-last, so nothing is copied.
            out = F.conv2d(
                y_BTNC.permute(0, 3, 1, 2),
                conv.weight[..., 0],
                conv.bias,
                padding=(cast(int, conv.padding[0]), 0),
                groups=conv.groups,
            )
            return out.permute(0, 2, 3, 1)
        out = conv(y_BTNC[:, :, prefix:].unflatten(2, grid).permute(0, 4, 1, 2, 3))
        return F.pad(out.permute(0, 2, 3, 4, 1).flatten(2, 3), (0, 0, prefix, 0))


class STAdapter(VideoModel):
    name = "st_adapter"
    Config = STAdapterConfig
    config: STAdapterConfig
    not_mergeable = "a depthwise convolution over frames cannot be folded into a linear layer"
    head_init_std = 0.02

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: STAdapterConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        placements = config.placements(len(self.blocks))
        self.chosen_blocks(tuple(sorted({index for index, _ in placements})))
        bottleneck = channels(self.width, config.bottleneck_ratio, "bottleneck_ratio")
        self.adapters = nn.ModuleDict(
            {
                f"{index}_{position}": Adapter(self.width, bottleneck, config.kernel_size)
                for index, position in placements
            }
        )
        self.declare(self.adapters)

    @property
    def whole_grid(self) -> str | None:
        if self.config.kernel_size[1:] != (1, 1):
            kernel = "x".join(map(str, self.config.kernel_size))
            return f"the kernel {kernel} goes over neighbouring patches (3x1x1 does not)"
        return super().whole_grid

    def tokens_needed(self, index: int) -> int | None:
        # Behind the attention an adapter has only patches to work on. In the last block it reaches no
        # logit; it keeps its gradient of zero, as in the released code.
        behind = (f"{index}_{p}" for p in ("after_attn", "before_mlp", "after_mlp"))
        return None if any(key in self.adapters for key in behind) else super().tokens_needed(index)

    def _adapt(self, index: int, position: Position, x: Tensor, num_frames: int) -> Tensor:
        key = f"{index}_{position}"
        if key not in self.adapters:
            return x
        view = self.view
        return cast(Tensor, self.adapters[key](x, num_frames, view.num_prefix_tokens, view.grid))

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        def adapted(position: Position, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self._adapt(index, position, x, num_frames)
            return x, norm(x)

        x, n = self.checkpointed(partial(adapted, "before_attn", block.norm1), x)
        kept = self.tokens_needed(index)
        branch = block.scale1(block.attention(n, kept))
        x = x[:, :kept] + self._adapt(index, "after_attn", branch, num_frames)
        x, n = self.checkpointed(partial(adapted, "before_mlp", block.norm2), x)
        branch = block.scale2(block.mlp(n))
        return x + self._adapt(index, "after_mlp", branch, num_frames)

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """The (frozen) final norm comes after the mean over T, as in the released code.

        So does any norm of the pooled feature (`fc_norm`). Where the image model norms all tokens and
        pools then (a mean of normed patches, attention pooling), the mean over T comes last.
        """
        mean = self.view.reduce(x).unflatten(0, (-1, num_frames)).mean(1)
        return cast(Tensor, self.head(self.head_dropout(self.view.finish(mean))))
