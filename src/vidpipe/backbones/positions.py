"""Position tables of grids that are not square, which timm's own loading takes for square ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import Beit, SwinTransformer
from torch import Tensor, nn

from vidpipe.backbones.patches import grid_of
from vidpipe.errors import VidpipeError

GRID = "grid"
"""Key of a weights file's header: patches down x across, of a grid that is not square."""
BIASES = "relative_position_bias_table"
CLASS_TOKEN_BIASES = 3
"""Of BEiT: from the class token to a patch, from a patch to it, and its own."""


def grid_header(vit: nn.Module) -> dict[str, str]:
    """What the header of a file of this model's weights has to say of its position grid."""
    if cast(Any, vit.patch_embed).grid_size is None:
        return {}
    rows, columns = grid_of(vit)
    return {} if rows == columns else {GRID: f"{rows}x{columns}"}


def read_grid(header: Mapping[str, str], source: str) -> tuple[int, int] | None:
    """The position grid that a weights file says it has; None: it says none, so it is square."""
    text = header.get(GRID)
    if text is None:
        return None
    if not (found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)):
        raise VidpipeError(f"{source}: its header says {GRID} {text[:40]!r}; expected ROWSxCOLUMNS")
    return int(found[1]), int(found[2])


def resized_positions(
    model: nn.Module, state: Mapping[str, Tensor], grid: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The position tables of `state` for the grid of `model`; nothing where timm has them right.

    `grid`: patches (down, across) of the state's positions; None: a square, as in the zoos' files, or,
    where their number is no square, that of `model`. Raises VidpipeError where the two cannot be, and
    where a square and another grid of as many patches might both be meant.
    """
    vit: Any = model
    own = grid_of(model)
    if isinstance(model, SwinTransformer):
        if grid is None or grid[0] == grid[1]:
            return {}
        if grid != own:
            raise VidpipeError(
                f"a Swin's biases for {grid[0]} x {grid[1]} patches cannot be resized to "
                f"{own[0]} x {own[1]}; take weights of a square size"
            )
        return {name: tensor for name, tensor in state.items() if name.endswith(BIASES)}
    tables = _resized_biases(model, state, grid) if isinstance(model, Beit) else {}
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or vit.pos_embed is None:
        return tables
    prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
    count = table.shape[1] - prefix
    grid = _grid_of_positions(model, count, own) if grid is None else grid
    if grid[0] * grid[1] != count:
        raise VidpipeError(
            f"{count} positions of patches, which are no grid of {grid[0]} x {grid[1]}"
        )
    if grid != own:
        table = resample_abs_pos_embed(
            table, list(own), list(grid), prefix, interpolation="bicubic", antialias=False
        )
    return {"pos_embed": table, **tables}


def _resized_biases(
    beit: nn.Module, state: Mapping[str, Tensor], grid: tuple[int, int] | None
) -> dict[str, Tensor]:
    """A BEiT's biases, one for each offset between patches and three for the class token's pairs."""
    own, tables = grid_of(beit), {}
    for name, table in state.items():
        if not name.endswith(BIASES) or table.ndim != 2:
            continue
        count = len(table) - CLASS_TOKEN_BIASES
        side = math.isqrt(max(count, 0))
        old = grid
        if old is None:  # the number of patches that have so many offsets, if the grid is square
            square = side * side == count and side % 2 == 1
            old = _grid_of_positions(beit, ((side + 1) // 2) ** 2, own) if square else own
        if (2 * old[0] - 1) * (2 * old[1] - 1) != count:
            raise VidpipeError(
                f"{name} has {count} biases of patches, which are none of {old[0]} x {old[1]} patches"
            )
        offsets = (2 * own[0] - 1) * (2 * own[1] - 1) + CLASS_TOKEN_BIASES
        shape = (offsets, table.shape[1])
        tables[name] = resize_rel_pos_bias_table(table, own, shape, old)
    return tables


def _grid_of_positions(model: nn.Module, count: int, own: tuple[int, int]) -> tuple[int, int]:
    side = math.isqrt(max(count, 0))
    if side * side != count:
        return own
    made_for = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 0, 0))[-2:]
    patch = cast(Any, model.patch_embed).feat_ratio(as_scalar=False)
    theirs = tuple(pixels // step for pixels, step in zip(made_for, patch, strict=True))
    if count == own[0] * own[1] and own[0] != own[1] and theirs != (side, side):
        raise VidpipeError(
            f"{count} positions of patches may be {side} x {side} or {own[0]} x {own[1]}; say which in "
            f'the header of a .safetensors file, such as {{"{GRID}": "{side}x{side}"}}'
        )
    return side, side
