"""Rearranging, projecting and shifting tokens: what the views of all ViTs and the methods share.

Shape suffixes: B clips, T frames, N tokens, D width. `x` is always
(B*T, N, D): frames are the batch, as in the image model.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def fold_frames(video_BCTHW: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B*T, 3, H, W)."""
    return video_BCTHW.transpose(1, 2).flatten(0, 1)


def to_time(x: Tensor, num_frames: int) -> Tensor:
    """(B*T, N, D) -> (B*N, T, D): each spatial position becomes a sequence over time."""
    bt, n, d = x.shape
    x_BTND = x.view(bt // num_frames, num_frames, n, d)
    # Contiguous also for one clip, where a view would do: a linear layer on that is a batched product
    # with a copy of its weight for every position, twice as slow (and ten times in bf16).
    return x_BTND.transpose(1, 2).contiguous().view(-1, num_frames, d)


def to_space(x: Tensor, num_tokens: int) -> Tensor:
    """(B*N, T, D) -> (B*T, N, D): the inverse of `to_time`."""
    bn, t, d = x.shape
    return x.view(bn // num_tokens, num_tokens, t, d).transpose(1, 2).reshape(-1, num_tokens, d)


def project(
    weight: Tensor, bias: Tensor | None, x: Tensor, queries: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A joint projection of (B*T, N, D) to q, k, v; q of the first `queries` tokens only (None: all)."""
    if queries is None:
        q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        return q, k, v
    width = len(weight) // 3
    q_weight, kv_weight = weight.split([width, 2 * width])
    q_bias, kv_bias = (None, None) if bias is None else bias.split([width, 2 * width])
    k, v = F.linear(x, kv_weight, kv_bias).chunk(2, dim=-1)
    # A copy of few tokens: a linear layer on a slice is a batched product, as in `to_time`.
    return F.linear(x[:, :queries].contiguous(), q_weight, q_bias), k, v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of (..., heads, N, D / heads) queries, keys and values; `mask` is added to the scores.

    On a CPU, what is trained in bf16 is computed in fp32 here: PyTorch's backward pass of attention is
    several times slower in bf16 (2.15, with AMX; least of many tokens).
    """
    dtype, trained = v.dtype, q.requires_grad or k.requires_grad or v.requires_grad
    if trained and dtype == torch.bfloat16 and v.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # which would take them back to bf16
            out = attention(q.float(), k.float(), v.float(), mask, scale)
        return out.to(dtype)
    mask = None if mask is None else mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


Groups = tuple[tuple[int, int], ...]
"""((channels, dt), ...) covering the width."""


def shift_frames(x: Tensor, num_frames: int, offsets: Groups) -> Tensor:
    """Take channel groups of (B*T, N, D) from other frames (ZeroI2V, STDHA; paper section 3.2).

    A group with offset dt comes from frame t + dt; where that frame is outside the clip the frame
    keeps its own, as in the released code (neither zero padding nor a roll). Slices and `cat` only:
    the backward of an index is much slower.
    """
    if all(dt == 0 for _, dt in offsets):
        return x
    groups = []
    for group, dt in _by_frame(x, num_frames, offsets):
        if dt < 0:
            group = torch.cat([group[:, :-dt], group[:, :dt]], dim=1)
        elif dt > 0:
            group = torch.cat([group[:, dt:], group[:, -dt:]], dim=1)
        groups.append(group)
    return torch.cat(groups, dim=-1).flatten(0, 1)


def shift_projection(x: Tensor, num_frames: int, offsets: Groups) -> Tensor:
    """`shift_frames` of keys or values that nothing else reads.

    Without a graph they are shifted where they lie: what moves is copied twice, the rest not at all.
    That is what keeps a merged ZeroI2V at the image model's cost. Hooks of the projection see them
    shifted.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return shift_frames(x, num_frames, offsets)
    for group, dt in _by_frame(x, num_frames, offsets):
        if dt < 0:
            group[:, -dt:] = group[:, :dt].clone()
        elif dt > 0:
            group[:, :-dt] = group[:, dt:].clone()
    return x


def shift_keys_and_values(
    k: Tensor, v: Tensor, num_frames: int, offsets: Groups
) -> tuple[Tensor, Tensor]:
    """`shift_projection` of both. Small ones that lie beside each other, as a joint projection leaves
    them, are gathered in one operation: there the number of operations is the cost, and not what they
    copy."""
    if any(dt for _, dt in offsets):
        both = _gathered(k, v, num_frames, offsets)
        if both is not None:
            return both
        k = shift_projection(k, num_frames, offsets)
        v = shift_projection(v, num_frames, offsets)
    return k, v


SMALL = 2**17
"""Elements of keys up to which rows are gathered, which is faster for 8 frames of 17 tokens of 96
channels (`benchmarks/latency.py`); for 8 of 197 tokens of 384 slices are."""


def _gathered(
    k: Tensor, v: Tensor, num_frames: int, offsets: Groups
) -> tuple[Tensor, Tensor] | None:
    """Shifted copies of k and v, whose memory is read as rows of as many channels as every group is a
    multiple of. None where they are large, needed for a backward pass, or lie otherwise."""
    # In this order: a program with any batch must not be asked how large the one is that it is made of.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or k.numel() > SMALL:
        return None
    frames, tokens, width = k.shape
    step, beside = k.stride(1), v.storage_offset() - k.storage_offset()
    joint = k.untyped_storage()._cdata == v.untyped_storage()._cdata
    if not joint or beside <= 0 or not k.stride() == v.stride() == (tokens * step, step, 1):
        return None
    where = (frames, num_frames, tokens, step, beside, offsets, k.device)
    channels, source = _row_numbers(*where)
    count = ((frames * tokens - 1) * step + beside + width) // channels
    rows = k.as_strided((count, channels), (channels, 1), k.storage_offset())
    both = rows.index_select(0, source).view(2, frames, tokens, width)
    return both[0], both[1]


@lru_cache(maxsize=64)
def _row_numbers(
    frames: int,
    num_frames: int,
    tokens: int,
    step: int,
    beside: int,
    offsets: Groups,
    device: torch.device,
) -> tuple[int, Tensor]:
    """Channels of a row, and the row that each one of all keys, then of all values, is a copy of. Tokens
    begin `step` channels apart, values `beside` those of the keys."""
    channels = math.gcd(*(count for count, _ in offsets), step, beside)
    with torch.inference_mode(False):
        dt = torch.tensor([dt for count, dt in offsets for _ in range(count // channels)])
        t = torch.arange(num_frames)[:, None]
        there = torch.where((t + dt >= 0) & (t + dt < num_frames), t + dt, t)
        first = torch.arange(0, frames, num_frames)[:, None, None, None]  # of each clip
        token = (first + there[:, None]) * tokens + torch.arange(tokens)[:, None]
        keys = token * (step // channels) + torch.arange(len(dt))
        source = torch.stack([keys, keys + beside // channels]).flatten()
        return channels, source.to(device)


def mix_frames(x: Tensor, num_frames: int, where: Tensor) -> Tensor:
    """(B*T, N, D), each head a sum over frames: `where` (heads, T, T) at [h, t, u] weighs frame u
    in what frame t gets."""
    by_head = x.unflatten(0, (-1, num_frames)).unflatten(-1, (where.shape[0], -1))
    mixed = torch.einsum("htu,bunhd->btnhd", where.to(x.dtype), by_head)
    return mixed.flatten(-2).flatten(0, 1)


def _by_frame(x: Tensor, num_frames: int, offsets: Groups) -> list[tuple[Tensor, int]]:
    """Each group as a view (B, T, N, channels), and its dt; 0 where all of it keeps its own frame."""
    groups = x.unflatten(0, (-1, num_frames)).split([channels for channels, _ in offsets], dim=-1)
    reach = (dt if abs(dt) < num_frames else 0 for _, dt in offsets)
    return list(zip(groups, reach, strict=True))
