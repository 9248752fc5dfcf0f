"""The frozen backbone of an adapter: the weights that it was trained on, and no others."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vidpipe.backbones.zoo import Backbone
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, sides, size_of, words


def refuse_other_weights(where: str, recorded: str, backbone: Backbone) -> None:
    if backbone.sha256 != recorded:
        raise VidpipeError(
            f"{where}: trained on weights {recorded[:12]}, but {backbone.config.weights} has "
            f"{backbone.sha256[:12]}; name the right backbone.weights"
        )


def shared(backbone: Backbone, size: Size, pool: str, folder: Path) -> Backbone:
    """The same tensors in modules of their own, so that a method may change the modules."""
    grid = cast(Any, backbone.vit.patch_embed).img_size
    if grid is not None and tuple(grid) != sides(size):
        raise VidpipeError(
            f"{folder}: made for {words(size)} px, but the backbone it should share is for "
            f"{words(size_of(*grid))} px"
        )
    if backbone.config.pool != pool:
        raise VidpipeError(
            f"{folder}: made for backbone.pool {pool}, but the backbone it should share has "
            f"{backbone.config.pool}"
        )
    memo: dict[int, Any] = {id(p): p for p in backbone.vit.parameters()}
    return replace(backbone, vit=copy.deepcopy(backbone.vit, memo))
