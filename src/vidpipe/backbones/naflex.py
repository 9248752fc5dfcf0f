"""timm's `NaFlexVit` at one size, where it is a plain ViT: SigLIP 2 NaFlex, C-RADIO v3 and v4.

It takes patches of pictures of any shape. Of pictures of one size all that differs is how positions are
kept (a grid, or a row and a column, resized in each forward pass) and that the patch embedding may be a
linear layer. So it becomes a `VisionTransformer` when it is loaded, of the same blocks, with the
positions that its own code makes for that size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models import NaFlexVit, VisionTransformer
from torch import Tensor, nn

from vidpipe.backbones.patches import grid_of
from vidpipe.backbones.view import blocks_refusal, unpooled
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size

EMBEDS = "embeds."
"""How the names of what comes before a NaFlexVit's blocks begin."""


@dataclass(frozen=True)
class NaFlexEmbedding:
    """How a `VisionTransformer` that was a `NaFlexVit` reads the weights of one."""

    embeds: nn.Module
    """timm's `NaFlexEmbeds`, on the meta device."""

    def plain(self, state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        """The state of a `NaFlexVit` by the names of a plain ViT, for `grid` patches (down, across)."""
        own = {k.removeprefix(EMBEDS): v for k, v in state.items() if k.startswith(EMBEDS)}
        rest = {k: v for k, v in state.items() if not k.startswith(EMBEDS)}
        positions = {name: own.pop(name) for name in [*own] if name.startswith("pos_embed")}
        weight = own.pop("proj.weight", None)
        if weight is not None:
            own["patch_embed.proj.weight"] = self._kernel(weight)
        if "proj.bias" in own:
            own["patch_embed.proj.bias"] = own.pop("proj.bias")
        if positions:
            own["pos_embed"] = self._positions(positions, grid)
        return {**rest, **own}

    def _kernel(self, weight: Tensor) -> Tensor:
        """The patch embedding as a convolution, (D, channels, rows, columns)."""
        own = cast(Any, self.embeds)
        if weight.ndim == 4:
            return weight
        rows, columns = own.patch_size
        if weight.shape[1] != rows * columns * own.in_chans:
            raise VidpipeError(
                f"patches have {weight.shape[1]} values, and the backbone's have "
                f"{rows} x {columns} x {own.in_chans}"
            )
        if not own.channels_last:
            return weight.unflatten(1, (own.in_chans, rows, columns))
        kernel = weight.unflatten(1, (rows, columns, own.in_chans))
        return kernel.permute(0, 3, 1, 2).contiguous()

    def _positions(self, tables: Mapping[str, Tensor], grid: tuple[int, int]) -> Tensor:
        """(1, P, D), by the model's own code, which resizes as its authors do."""
        embeds: Any = copy.copy(self.embeds)
        # A copy of its own for the tables, which are parameters of the other.
        embeds._parameters = {**embeds._parameters}
        for name, table in tables.items():
            setattr(embeds, name, nn.Parameter(table, requires_grad=False))
        first = next(iter(tables.values()))
        positions = first.new_zeros(1, grid[0] * grid[1], first.shape[-1])
        if embeds.pos_embed_type == "factorized":
            embeds._apply_factorized_pos_embed(positions, list(grid))
        else:
            embeds._apply_learned_pos_embed(positions, list(grid))
        return positions


@torch.no_grad()
def plain_vit(model: NaFlexVit, size: Size) -> VisionTransformer:
    """`model`, against which `naflex_refusal` finds nothing, for pictures of `size`. Its blocks, norms
    and pooling are the same modules."""
    own: Any = model
    embeds = own.embeds
    parameter = embeds.proj.weight
    vit: Any = VisionTransformer(
        img_size=size,
        patch_size=embeds.patch_size,
        in_chans=embeds.in_chans,
        num_classes=0,
        global_pool=own.global_pool,
        embed_dim=own.embed_dim,
        depth=0,
        num_heads=own.blocks[0].attn.num_heads,
        class_token=own.has_class_token,
        reg_tokens=own.num_reg_tokens,
        no_embed_class=True,
        pos_embed="none" if embeds.pos_embed_type == "none" else "learn",
        pool_include_prefix=own.pool_include_prefix,
        pre_norm=embeds.proj.bias is None,
        weight_init="skip",
        device=parameter.device,
        dtype=parameter.dtype,
    )
    for part in ("norm_pre", "blocks", "norm", "attn_pool", "fc_norm"):
        setattr(vit, part, getattr(own, part))
    vit.feature_info = own.feature_info
    vit.pretrained_cfg = getattr(own, "pretrained_cfg", {})
    vit.naflex = NaFlexEmbedding(copy.deepcopy(embeds).to("meta"))
    grid = grid_of(vit)
    if all(grid):  # a size of less than a patch is refused later
        state = {f"{EMBEDS}{name}": tensor for name, tensor in embeds.state_dict().items()}
        vit.load_state_dict(vit.naflex.plain(state, grid), strict=False)
    return cast(VisionTransformer, vit)


def plain_state(
    vit: nn.Module, state: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], tuple[int, int] | None]:
    """The weights of a `NaFlexVit` as those of `vit`, which was one, and the grid that they are for
    then; other weights as they are, and None."""
    own = getattr(vit, "naflex", None)
    if own is None or not any(name.startswith(EMBEDS) for name in state):
        return state, None
    grid = grid_of(vit)
    return own.plain(state, grid), grid


def naflex_refusal(model: NaFlexVit) -> str | None:
    """Why a `NaFlexVit` is no plain ViT at one size; None: it is one."""
    own: Any = model
    if type(model) is not NaFlexVit:
        return f"is a {type(model).__name__}, whose forward pass may be another than NaFlexVit's"
    if own.rope is not None:
        return "is a NaFlexVit with RoPE, which no method can adapt yet"
    embeds = own.embeds
    if embeds.norm_input is not None or not isinstance(embeds.norm, nn.Identity):
        return "is a NaFlexVit with a norm in its patch embedding"
    if embeds.dynamic_img_pad:
        return "is a NaFlexVit that pads pictures to whole patches"
    return unpooled(model) or blocks_refusal(model)
