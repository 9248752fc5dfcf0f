"""Whether a picture of some size is whole patches: what is over, a patch embedding drops in silence."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vidpipe.backbones.swin import SWINS
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, sides, size_of, words


def refuse_dropped_pixels(model: nn.Module, name: str, size: Size, made_for: Size | None) -> None:
    """Raise VidpipeError where a side of `size` is no multiple of what one patch covers, with the
    nearest sizes that are. With a convolutional stem, a patch covers the stem's stride times its own.

    `made_for`: the size of the weights' card, which is always taken: what SigLIP's 384 pixels are more
    than 27 patches of 14 its authors dropped in training, too.
    """
    embedding: Any = model.patch_embed
    if size == made_for or getattr(embedding, "dynamic_img_pad", False):
        return
    patch = _pair(embedding.feat_ratio(as_scalar=False))
    given = sides(size)
    if not any(side % step for side, step in zip(given, patch, strict=True)):
        return
    floor = [side // step * step for side, step in zip(given, patch, strict=True)]
    above = [
        low if low == side else low + step
        for low, side, step in zip(floor, given, patch, strict=True)
    ]
    near = [words(size_of(*pair)) for pair in (floor, above) if all(pair)]
    raise VidpipeError(
        f"transform.size: {words(size)} px is no multiple of {name}'s patch of "
        f"{words(size_of(*patch))} px; nearest that work: {' and '.join(near)}"
    )


def set_size(model: nn.Module, size: Size) -> None:
    """Make a timm model one for `size`. A Swin keeps its windows, as one that is built for that size has
    them; timm would scale them with the grid."""
    windows: dict[str, Any] = {}
    if isinstance(model, SWINS):
        windows = {"window_size": model._ref_window_sizes}
    cast(Any, model).set_input_size(img_size=sides(size), **windows)


def grid_of(model: nn.Module) -> tuple[int, int]:
    """Patches (down, across) of a model made for one size."""
    rows, columns = model.patch_embed.grid_size  # type: ignore[union-attr,misc]
    return rows, columns


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
