"""The pieces of a timm Swin forward that methods recombine.

Shape suffixes as in `ops`: B clips, T frames, N tokens of a window, C width (it differs by stage).
`x` is always (B*T, H, W, C). timm merges patches at the start of a stage, in the order of the
original Swin: (row, column) even-even, odd-even, even-odd, odd-odd.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import SwinTransformer, SwinTransformerV2
from timm.models.swin_transformer import (
    SwinTransformerBlock,
    SwinTransformerStage,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView
from vidpipe.backbones.ops import attention, to_space, to_time

SWINS = (SwinTransformer, SwinTransformerV2)


def stages_of(swin: SwinTransformer | SwinTransformerV2) -> list[SwinTransformerStage]:
    return [cast(SwinTransformerStage, stage) for stage in swin.layers]


def blocks_of_stage(stage: SwinTransformerStage) -> list[SwinTransformerBlock]:
    return [cast(SwinTransformerBlock, block) for block in stage.blocks]


def patch_embed_of(swin: SwinTransformer) -> PatchEmbed:
    return cast(PatchEmbed, swin.patch_embed)


class WindowView(BlockView):
    """A Swin block: attention within windows. Tokens are (B*T, H, W, C), q, k and v those of windows."""

    @property
    def width(self) -> int:
        """C of this block's stage."""
        return cast(SwinTransformerBlock, self.module).dim

    def __call__(self, x: Tensor, kept: int | None = None) -> Tensor:
        return cast(Tensor, self.module(x))

    def to_windows(self, x: Tensor) -> Tensor:
        """(B*T, H, W, C) -> (B*T*windows, N, C): cyclic shift, zero padding to whole windows, cut."""
        block = cast(SwinTransformerBlock, self.module)
        rows, columns = block.window_size
        if any(block.shift_size):
            x = x.roll((-block.shift_size[0], -block.shift_size[1]), (1, 2))
        x = F.pad(x, (0, 0, 0, -x.shape[2] % columns, 0, -x.shape[1] % rows))
        return window_partition(x, block.window_size).flatten(1, 2)

    def from_windows(self, windows: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B*T*windows, N, C) -> (B*T, H, W, C) with `grid` (H, W): the inverse of `to_windows`."""
        block = cast(SwinTransformerBlock, self.module)
        rows, columns = block.window_size
        height, width = grid
        x = window_reverse(
            windows.unflatten(1, (rows, columns)),
            block.window_size,
            height + -height % rows,
            width + -width % columns,
        )[:, :height, :width]
        return x.roll(block.shift_size, (1, 2)) if any(block.shift_size) else x

    def scale1(self, x: Tensor) -> Tensor:
        return x

    def scale2(self, x: Tensor) -> Tensor:
        return x

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def window_bias(self) -> Tensor:
        """Of the positions of a window's tokens, (1, heads, N, N)."""
        return cast(Tensor, self.attn._get_rel_pos_bias())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Window attention over projected q, k, v, each (B*T*windows, N, C), with position bias and
        mask, before the output projection."""
        bias = self.window_bias()
        mask = cast(Tensor | None, cast(SwinTransformerBlock, self.module).attn_mask)
        if (
            mask is not None
        ):  # (windows, N, N): hides from each other what the shift brought together
            bias = bias + mask[:, None]

        # Every frame's windows get the same biases.
        parts = (*self.place(q, k), self.heads(v))
        q, k, v = (x.unflatten(0, (-1, bias.shape[0])) for x in parts)
        out = attention(q, k, v, bias, self.scale)
        return out.flatten(0, 1).transpose(1, 2).flatten(2)

    def attention_in_windows(self, x: Tensor) -> Tensor:
        """Normed tokens (B*T, H, W, C) -> same: timm's window attention."""
        return cast(SwinTransformerBlock, self.module)._attn(x)

    def attention_in_time(self, x: Tensor, num_frames: int, table: Tensor) -> Tensor:
        """Attention among the T tokens of each position, (B*T, H, W, C) -> same.

        `table` (2T-1, heads): the bias of frame i looking at frame j is row i - j + T - 1.
        """
        grid = x.shape[1:3]
        x = to_time(x.flatten(1, 2), num_frames)
        q, k, v = self.project(x)
        q, k, v = *self.place(q, k), self.heads(v)
        bias = table[time_distance(num_frames, table.device)].permute(2, 0, 1)
        out = attention(q, k, v, bias[None], self.scale)
        x = self.out(out.transpose(1, 2).flatten(2))
        return to_space(x, grid.numel()).unflatten(1, grid)


def time_distance(num_frames: int, device: torch.device | None = None) -> Tensor:
    """(T, T) row numbers i - j + T - 1 in a temporal bias table."""
    frame = torch.arange(num_frames, device=device)
    return frame[:, None] - frame + num_frames - 1


def with_tubelets(swin: SwinTransformer) -> SwinTransformer:
    """`swin` with patches of two frames (AIM): its 2-D patch weights on both, divided by two.

    A still pair gives the image model's patches. All other modules are shared with `swin`, which
    itself stays an image model: others (the linear probe of a latency measurement) use it too.
    """
    flat = patch_embed_of(swin).proj
    if isinstance(flat, nn.Conv3d):
        return swin
    size = (2, *cast(tuple[int, int], flat.kernel_size))
    proj = nn.Conv3d(flat.in_channels, flat.out_channels, size, stride=size)
    proj.weight = nn.Parameter(flat.weight.detach()[:, :, None].repeat(1, 1, 2, 1, 1) / 2)
    proj.bias = None if flat.bias is None else nn.Parameter(flat.bias.detach().clone())
    tubelets = _replace(patch_embed_of(swin), "proj", proj)
    return cast(SwinTransformer, _replace(swin, "patch_embed", tubelets))


def _replace(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """A shallow copy of `module` with another child."""
    clone = copy.copy(module)
    clone._modules = {**module._modules, name: child}
    return clone
