"""Where the class token looks: attention probabilities of one block, read from the real forward.

Every method ends in `F.scaled_dot_product_attention`, whichever tokens and weights it gives to it. A
torch function mode sees those calls, so no method has a second forward for explanations and the
logits are the same bits. A mode belongs to its thread: a server may explain two clips at a time.

Shape suffixes: T frames, H heads, N tokens, P = gh * gw patches (always the last P of the N tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vidpipe.backbones.swin import SWINS
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.side4video import Side4Video


@dataclass(frozen=True)
class AttentionMaps:
    """Of one block and one clip; fp32 on the CPU."""

    heads: Tensor
    """(T, H, gh, gw): what the class token of frame t gives to each patch; where the ViT pools its
    patches, the mean over their queries. With `elsewhere`, each head of each frame adds up to 1."""
    elsewhere: Tensor
    """(T, H): what it gives to the class token, registers and prompts."""
    offsets: tuple[int | None, ...]
    """dt of each head: its keys come from frame `key_frame(t, dt)`. None: from several frames."""
    over_time: Tensor | None
    """(H, N, T, T), where the block also attends over time: [h, n] is query frame x key frame at token
    position n (AIM: all tokens; divided attention: patches only)."""
    clip_query: Tensor | None
    """(H, T, gh, gw), where one query reads the tokens of all frames (attentional pooling, attentive
    probe, EVL): of the last such attention of the model, whatever the block."""
    logits: Tensor
    """(C,)"""

    @property
    def num_frames(self) -> int:
        return len(self.heads)

    def key_frame(self, t: int, dt: int) -> int:
        """The frame whose keys frame t sees at offset dt: its own where t + dt is outside the clip."""
        return t + dt if 0 <= t + dt < self.num_frames else t

    def mean(self, dt: int | None) -> Tensor:
        """(T, gh, gw): mean over the heads of one offset, by query frame."""
        return self.heads[:, [own == dt for own in self.offsets]].mean(1)

    def from_other_frames(self) -> Tensor | None:
        """(T, gh, gw) by key frame: what each patch receives, at its own position, from the queries of
        all other frames (mean over heads and those frames; 1 / T where attention is uniform)."""
        if self.over_time is None or self.num_frames == 1:
            return None
        gh, gw = self.heads.shape[2:]
        a = self.over_time[:, -gh * gw :].mean(0)  # (P, query frame, key frame)
        others = ~torch.eye(self.num_frames, dtype=torch.bool)
        received = (a * others).sum(1) / (self.num_frames - 1)
        return received.T.unflatten(1, (gh, gw))

    def class_token_over_time(self) -> Tensor | None:
        """(T, T), query frame x key frame: mean over heads, where the class token takes part."""
        gh, gw = self.heads.shape[2:]
        if self.over_time is None or self.over_time.shape[1] == gh * gw:
            return None
        return self.over_time[:, 0].mean(0)


Answer = Callable[[VideoModel, Tensor], Tensor]
"""Of a model and clips (B, 3, T, H, W): logits (B, C)."""


def of_the_clip(model: VideoModel, video: Tensor) -> Tensor:
    """What a model answers of whole clips."""
    return cast(Tensor, model(video))


@torch.no_grad()
def attention_maps(
    model: VideoModel,
    clip: Tensor,
    block: int = -1,
    answer: Answer = of_the_clip,
    patches_read: Tensor | None = None,
) -> AttentionMaps:
    """Attention of `block` (negative: from the end) on one normalised clip (1, 3, T, H, W).

    `answer`: what is computed of it, such as of a box; `patches_read`: numbers of the patches whose
    queries are looked at, None: those of what the image model's feature is made of.

    Raises VidpipeError for a Swin, for a block that is not there, and where the method attends by
    other means than PyTorch's fused attention.
    """
    index = block_index(model, block)
    if clip.ndim != 5 or len(clip) != 1:
        raise VidpipeError(f"explain: expected one clip (1, 3, T, H, W), got {tuple(clip.shape)}")
    num_frames = clip.shape[2]
    recorder = _Recorder(model, index, num_frames)
    with recorder:
        logits = answer(model, clip)[0]
    if recorder.spatial is None:
        raise VidpipeError(
            f"explain: saw no attention over patches in block {index} of {model.name}; expected "
            "F.scaled_dot_product_attention"
        )
    grid = model.view.grid
    patches = grid[0] * grid[1]
    q, k, scale, bias = recorder.spatial
    # The queries of the tokens that the feature is made of.
    read: slice | Tensor = slice(1) if model.view.reads == "prefix" else slice(-patches, None)
    if patches_read is not None:
        read = q.shape[2] - patches + patches_read.to(q.device)
    bias = None if bias is None else bias[..., read, :]
    spatial = _probabilities(q[:, :, read], k, scale, bias).mean(2)  # (T, H, N)
    over_time = clip_query = None
    if recorder.over_time is not None:
        over_time = _probabilities(*recorder.over_time).transpose(0, 1)
    if recorder.clip_query is not None:
        a = _probabilities(*recorder.clip_query)[0, :, 0].unflatten(-1, (num_frames, -1))
        clip_query = a[..., -patches:].unflatten(-1, grid)
    return AttentionMaps(
        heads=spatial[..., -patches:].unflatten(-1, grid),
        elsewhere=spatial[..., :-patches].sum(-1),
        offsets=head_offsets(model, index),
        over_time=over_time,
        clip_query=clip_query,
        logits=logits.float().cpu(),
    )


def block_index(model: VideoModel, block: int) -> int:
    """`block` counted from the start. Raises VidpipeError for a Swin or a block that is not there."""
    if isinstance(model.vit, SWINS):
        raise VidpipeError(
            f"explain: {model.name} is on a Swin, which attends within windows and has no class "
            "token; explanations need a ViT"
        )
    depth = len(model.blocks)
    if not -depth <= block < depth:
        raise VidpipeError(
            f"explain: block {block} is not in this backbone, whose blocks are 0..{depth - 1}; -1 "
            "is the last"
        )
    return block % depth


def head_offsets(model: VideoModel, index: int) -> tuple[int | None, ...]:
    """dt of each head of block `index`; None where the channels of a head come from several frames."""
    channels = [dt for count, dt in model.key_offsets(index) for _ in range(count)]
    heads = model.blocks[index].num_heads
    width = len(channels) // heads
    own = [set(channels[h * width : (h + 1) * width]) for h in range(heads)]
    return tuple(next(iter(dts)) if len(dts) == 1 else None for dts in own)


Attended = tuple[Tensor, Tensor, float, Tensor | None]
"""Queries (..., Q, d), keys (..., K, d), the scale of their product, and what is added to it (BEiT)."""


def _probabilities(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """(..., Q, K)"""
    scores = q.float() @ k.float().transpose(-2, -1) * scale
    return (scores if bias is None else scores + bias.float()).softmax(-1).cpu()


class _Recorder(TorchFunctionMode):
    """Keeps the queries and keys of the attentions of block `index`.

    `norm2` follows the spatial attention in every method, so what comes between two of them is one
    block's; the last attention there is the spatial one, one of T queries and T keys before it is
    over time. One query to the tokens of all frames is a decoder's, wherever it stands; where the last
    block asks for the class token only there is none. A side network's attention, behind each block, is
    none of the blocks'; its norm says where it begins, and the next block's norm where it ends.
    """

    def __init__(self, model: VideoModel, index: int, num_frames: int) -> None:
        super().__init__()
        self.index, self.num_frames = index, num_frames
        self.decoders = model.tokens_needed(len(model.blocks) - 1) is None
        blocks = [cast(Any, block) for block in model.blocks]
        self.enters = {id(b.norm2.weight): i + 1 for i, b in enumerate(blocks)}
        if isinstance(model, Side4Video):
            outside = (cast(Any, side).norm2 for side in model.side)
            self.enters |= {id(b.norm1.weight): i for i, b in enumerate(blocks)}
            self.enters |= {id(norm.weight): len(blocks) for norm in outside}
        self.block = 0
        self.spatial: Attended | None = None
        self.over_time: Attended | None = None
        self.clip_query: Attended | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._keep(*args, **kwargs)
        else:
            for argument in (*args, *kwargs.values()):
                if id(argument) in self.enters:
                    self.block = self.enters[id(argument)]
        return func(*args, **kwargs)

    def _keep(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        seen = (query, key, query.shape[-1] ** -0.5 if scale is None else scale, attn_mask)
        queries, keys = query.shape[-2], key.shape[-2]
        if self.decoders and queries == 1 and len(query) == 1 and keys > self.num_frames:
            self.clip_query = seen
        elif self.block == self.index:
            if self.spatial is not None and self.spatial[0].shape[-2] == self.num_frames:
                self.over_time = self.spatial
            self.spatial = seen
