"""Spatial-temporal dual-headed attention (ZeroI2V, section 3.2) and the shifts it is compared with.

The keys and values of some heads come from frame t + dt, at no cost in parameters or FLOPs. Table 1a
compares what is shifted (the class token; Q, K and V; K and V) and in which units: whole heads
("head relocation"), or a part of every head's channels ("shift"). The paper does not define the
rivals in more detail; half of a shifted part comes from t - 1 and half from t + 1, as in TSM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vidpipe.backbones.block import BlockView, Part
from vidpipe.backbones.ops import (
    Groups,
    mix_frames,
    shift_frames,
    shift_keys_and_values,
    shift_projection,
)
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import STDHAConfig
from vidpipe.methods.temporal_embedding import EmbedsTime, TemporalEmbedding


class STDHA(EmbedsTime):
    """A frozen ViT with shifted heads and a temporal embedding; subclasses add what is trained."""

    config: STDHAConfig
    not_mergeable: str | None = None
    starts_as_image_model = False  # heads are shifted from step 0
    mixed: Tensor | None = None
    """(depth, heads, T, T) weights of frames in place of the offsets, while heads are weighed
    (`offset_search.mixing`)."""

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
        self.adapted = frozenset(self.chosen_blocks(config.blocks))
        """Blocks with what a subclass adds."""
        if config.blocks is not None and not per_block(config):
            self.offsets = [
                own if i in self.adapted else ((self.width, 0),)
                for i, own in enumerate(self.offsets)
            ]
        shifted = {i for i, own in enumerate(self.offsets) if any(dt for _, dt in own)}
        self.changed = self.adapted | shifted
        """Blocks that differ from the image model's."""
        if config.temporal_embedding_at == "first_adapted":
            self.embeds_time_at = min(self.changed, default=-1)
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

    def block(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        if index not in self.changed:
            return super().block(index, block, x, num_frames)
        x = self.with_time(index, x, num_frames)
        kept = self.tokens_needed(index)
        branch = block.scale1(self._attention(index, block, x, num_frames))
        x = (x if kept is None else x[:, :kept]) + branch
        return x + block.scale2(self.mlp(index, block, x))

    def _attention(self, index: int, block: BlockView, x: Tensor, num_frames: int) -> Tensor:
        # Apart from `block`, which would still hold q, k and v at inference while the MLP asks for
        # memory.
        groups, shifted = self.offsets[index], self.config.shifted
        n = block.norm1(x)
        if shifted == "cls":
            n = torch.cat([shift_frames(n[:, :1], num_frames, groups), n[:, 1:]], dim=1)
        q, k, v = self.qkv(index, block, n, self.tokens_needed(index))
        if self.mixed is not None:
            k, v = (mix_frames(x, num_frames, self.mixed[index]) for x in (k, v))
        elif shifted != "cls":
            k, v = shift_keys_and_values(k, v, num_frames, groups)
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
    each = given_offsets(config, method, depth)
    if len(each) != depth:
        raise VidpipeError(
            f"methods.{method}.head_offsets: {len(each)} lists, expected one for each of "
            f"{depth} blocks"
        )
    return [head_groups(own, method, width, heads) for own in each]


def per_block(config: STDHAConfig) -> bool:
    """Whether `head_offsets` gives each block (of a Swin, stage) its own."""
    given = config.head_offsets
    return isinstance(given, tuple) and any(isinstance(own, tuple) for own in given)


def given_offsets(config: STDHAConfig, method: str, lists: int) -> tuple[tuple[int, ...], ...]:
    """`head_offsets` as one list for each of so many blocks. Raises VidpipeError for `auto`."""
    offsets: Any = (-1, 1) if config.head_offsets is None else config.head_offsets
    if config.searched is not None:
        raise VidpipeError(
            f"methods.{method}.head_offsets: auto is found by `vidpipe train`, `tune` or `study` on the "
            "clips of a training, for ViTs; a model is made with offsets, such as [-1, 1]"
        )
    return offsets if offsets and not isinstance(offsets[0], int) else (offsets,) * lists


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
