"""Spatial-temporal dual-headed attention (ZeroI2V, section 3.2) and the shifts it is compared with.

The keys and values of some heads come from frame t + dt, at no cost in parameters or FLOPs. Table 1a
compares what is shifted (the class token; Q, K and V; K and V) and in which units: whole heads
("head relocation"), or a part of every head's channels ("shift"). The paper does not define the
rivals in more detail; half of a shifted part comes from t - 1 and half from t + 1, as in TSM.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView, Part
from vidpipe.backbones.ops import Groups, shift_frames, shift_projection
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import STDHAConfig
from vidpipe.methods.temporal_embedding import TemporalEmbedding


class STDHA(VideoModel):
    """A frozen ViT with shifted heads and a temporal embedding; subclasses add what is trained."""

    config: STDHAConfig
    not_mergeable: str | None = None
    starts_as_image_model = False  # heads are shifted from step 0

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: STDHAConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        if config.shifted == "cls" and not self.view.has_class_token:
            raise VidpipeError(
                f"methods.{self.name}.shifted: cls, but the backbone has no class token"
            )
        heads = self.blocks[0].num_heads
        self.offsets = channel_groups(config, self.name, self.width, heads, len(self.blocks))
        self.temporal_embedding = TemporalEmbedding(num_frames, self.width)

    # -- what a subclass overrides ----------------------------------------------------------

    def qkv(
        self, index: int, block: BlockView, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of normed tokens (B*T, N, D); q of the first `queries` only (None: all)."""
        return block.project(x, queries)

    def out(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        return block.out(x)

    def mlp(self, index: int, block: BlockView, x: Tensor) -> Tensor:
        return block.mlp(block.norm2(x))

    # -- what is common ---------------------------------------------------------------------

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """All but the norm and the temporal embedding, as in ZeroI2V's code; biases are decayed."""
        return not name.startswith(("vit.norm.", "vit.fc_norm.", "temporal_embedding."))

    def embed(self, frames: Tensor, num_frames: int) -> Tensor:
        x = self.temporal_embedding(self.view.embed(frames), num_frames)
        return self.view.norm_pre(x)

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        x = x[:, : self.tokens_needed(index)] + block.scale1(
            self._attention(index, block, x, num_frames)
        )
        return x + block.scale2(self.mlp(index, block, x))

    def _attention(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        # Apart from `block`, which would still hold q, k and v at inference while the MLP asks for
        # memory.
        groups, shifted = self.offsets[index], self.config.shifted
        n = block.norm1(x)
        if shifted == "cls":
            n = torch.cat([shift_frames(n[:, :1], num_frames, groups), n[:, 1:]], dim=1)
        q, k, v = self.qkv(index, block, n, self.tokens_needed(index))
        if shifted != "cls":
            k = shift_projection(k, num_frames, groups)
            v = shift_projection(v, num_frames, groups)
        if shifted == "qkv":
            q = shift_projection(q, num_frames, groups)
        return self.out(index, block, block.attend(q, k, v))

    def key_offsets(self, index: int) -> Groups:
        # With `cls`, only what is attended to at the class token is another frame's.
        return super().key_offsets(index) if self.config.shifted == "cls" else self.offsets[index]

    def copy_rest(self, merged: STDHA) -> None:
        """Give `merged` what merging leaves as it is: head, temporal embedding, dtype, device."""
        merged.to(
            self.head.weight
        )  # first: new modules are fp32, which would cut fp64 weights short
        merged.head.load_state_dict(self.head.state_dict())
        merged.temporal_embedding.load_state_dict(self.temporal_embedding.state_dict())


def channel_groups(
    config: STDHAConfig, method: str, width: int, heads: int, depth: int
) -> list[Groups]:
    """The groups of each of `depth` blocks of one width, from whichever option is set."""
    options = ("head_offsets", "channel_offsets", "shift_ratio")
    given = [name for name in options if getattr(config, name) is not None]
    if len(given) > 1:
        raise VidpipeError(f"methods.{method}: {' and '.join(given)} are both set; keep one")
    if config.channel_offsets is not None:
        if sum(c for c, _ in config.channel_offsets) != width:
            raise VidpipeError(
                f"methods.{method}.channel_offsets: groups must add up to the width {width}"
            )
        return [config.channel_offsets] * depth
    head_width = width // heads
    if config.shift_ratio is not None:
        part = round(head_width * config.shift_ratio / 2)
        if part == 0:
            raise VidpipeError(
                f"methods.{method}.shift_ratio: {config.shift_ratio:g} of a head's {head_width} "
                "channels is less than a channel each way"
            )
        return [((part, -1), (part, 1), (head_width - 2 * part, 0)) * heads] * depth
    offsets = (-1, 1) if config.head_offsets is None else config.head_offsets
    if not offsets or isinstance(offsets[0], int):
        offsets = (cast(tuple[int, ...], offsets),) * depth
    per_block = offsets
    if len(per_block) != depth:
        raise VidpipeError(
            f"methods.{method}.head_offsets: {len(per_block)} lists, expected one for each of "
            f"{depth} blocks"
        )
    return [head_groups(own, method, width, heads) for own in per_block]


def head_groups(offsets: tuple[int, ...], method: str, width: int, heads: int) -> Groups:
    if len(offsets) > heads:
        raise VidpipeError(
            f"methods.{method}.head_offsets: {len(offsets)} offsets for {heads} heads"
        )
    head_width = width // heads
    groups = tuple((head_width, dt) for dt in offsets)
    rest = width - len(offsets) * head_width
    return (*groups, (rest, 0)) if rest else groups


def add_to_weight(block: BlockView, part: Part, update: Tensor) -> None:
    """The weight of `part` += update, composed in fp64 and kept in the layer's dtype."""
    block.overwrite(part, block.affine(part)[0].double() + update.double(), None)
