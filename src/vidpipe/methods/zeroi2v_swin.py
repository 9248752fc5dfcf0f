"""ZeroI2V on Swin (Li et al., ECCV 2024, section 4 and Table 6b; no code was released).

As on a ViT, but in windows: a temporal head of a window takes the keys and values of the same
window in frame t + dt. All frames are cut alike, so the cyclic shift changes nothing about that.
Patches span two frames, and dt counts such pairs: Table 13's 741 GFLOPs for 3 views of 32 frames
are those of 16.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import SwinTransformer
from torch import Tensor, nn

from vidpipe.backbones.ops import shift_projection
from vidpipe.backbones.swin import WindowView, blocks_of_stage, stages_of
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import ZeroI2VConfig, channels
from vidpipe.methods.stdha import given_offsets, head_groups
from vidpipe.methods.swin import TubeletModel
from vidpipe.methods.temporal_embedding import TemporalEmbedding
from vidpipe.methods.zeroi2v import LinearAdapter, ZeroI2V

OFFSETS = (1, -1, 2, -2)


class ZeroI2VSwin(TubeletModel, ZeroI2V):
    """Adapters of a quarter of each stage's width; trained with them: temporal embedding, last norm."""

    def __init__(
        self, swin: SwinTransformer, num_classes: int, num_frames: int, config: ZeroI2VConfig
    ) -> None:
        if config.shifted != "kv" or config.shift_ratio is not None:
            raise VidpipeError(
                "methods.zeroi2v: shifted and shift_ratio (Table 1a) are for ViTs; on a Swin whole "
                "heads' keys and values move"
            )
        if config.blocks is not None or config.temporal_embedding_at != "input":
            raise VidpipeError("methods.zeroi2v: blocks and temporal_embedding_at are for ViTs")
        TubeletModel.__init__(self, swin, num_classes, num_frames, config)
        if config.activation != "none" and config.adapters:
            self.not_mergeable = "its adapters have a GELU"
        if not config.adapters:  # as in `ZeroI2V`: a Swin V2 has no bias of k to fold into
            for block in self.blocks:
                block.open_biases()
        self.stage_offsets = self._stage_offsets(config)
        self.adapters = nn.ModuleList(
            nn.ModuleDict({name: _adapter(block.width, config) for name in config.adapters})
            for block in self.blocks
        )
        self.temporal_embedding = TemporalEmbedding(num_frames // 2, self.blocks[0].width)
        self.declare(self.adapters, self.temporal_embedding, self.swin.norm)

    def _stage_offsets(self, config: ZeroI2VConfig) -> list[tuple[tuple[int, int], ...]]:
        """For each stage the (channels, dt) groups that `shift_projection` takes."""
        if config.channel_offsets is not None:
            raise VidpipeError("methods.zeroi2v.channel_offsets: for ViTs; give head_offsets")
        given_offsets(config, self.name, 1)  # refuses auto
        attentions = [blocks_of_stage(stage)[0].attn for stage in stages_of(self.swin)]
        given = _per_stage(cast(Any, config.head_offsets), [attn.num_heads for attn in attentions])
        return [
            head_groups(offsets, self.name, attn.qkv.in_features, attn.num_heads)
            for attn, offsets in zip(attentions, given, strict=True)
        ]

    def embed_clip(self, video: Tensor) -> tuple[Tensor, int]:
        x, pairs = TubeletModel.embed_clip(self, video)
        grid = x.shape[1:3]
        return self.temporal_embedding(x.flatten(1, 2), pairs).unflatten(1, grid), pairs

    def block(  # type: ignore[override]
        self, index: int, block: WindowView, x: Tensor, num_frames: int
    ) -> Tensor:
        offsets = self.stage_offsets[self.stage_of_block[index]]
        windows = block.to_windows(block.norm1(x))
        q, k, v = self.qkv(index, block, windows)

        def shift(y: Tensor) -> Tensor:
            # The windows of a frame are consecutive: with their tokens they are one axis of it.
            tokens = y.unflatten(0, (x.shape[0], -1))
            moved = shift_projection(tokens.flatten(1, 2), num_frames, offsets)
            return moved.view(tokens.shape).flatten(0, 1)

        out = self._adapt(index, "attn_out", block.out(block.attend(q, shift(k), shift(v))))
        x = x + block.scale1(block.from_windows(out, (x.shape[1], x.shape[2])))
        hidden = block.mlp(self._adapt(index, "mlp_in", block.norm2(x)))
        return x + block.scale2(self._adapt(index, "mlp_out", hidden))


def _adapter(width: int, config: ZeroI2VConfig) -> LinearAdapter:
    bottleneck = channels(width, config.bottleneck_ratio, "bottleneck_ratio")
    options = (config.scale, config.adapter_dropout, config.activation)
    return LinearAdapter(width, bottleneck, *options)


def _per_stage(
    given: tuple[int, ...] | tuple[tuple[int, ...], ...] | None, heads: list[int]
) -> list[tuple[int, ...]]:
    """Head offsets of each stage; not given: a quarter of the heads at +1, -1, +2, -2 in turn.

    On Swin-B (4, 8, 16, 32 heads) that is the paper's Table 6b: {1}, {1, -1}, {1, -1, 2, -2} and
    each of these four twice.
    """
    if given is None:
        return [tuple(OFFSETS[i % 4] for i in range(max(1, count // 4))) for count in heads]
    nested = [offsets for offsets in given if isinstance(offsets, tuple)]
    if not nested:
        return [cast(tuple[int, ...], given)] * len(heads)
    if len(nested) != len(heads):
        raise VidpipeError(
            f"methods.zeroi2v.head_offsets: {len(nested)} lists for {len(heads)} stages"
        )
    return nested
