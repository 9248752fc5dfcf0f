"""Frames as a model takes them: resized and cropped while they are uint8, normalised on the device.

The one place that says so. Training draws its own crops (`data.transforms`) of the same form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode

from vidpipe.data.config import TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, sides


@dataclass(frozen=True)
class InputForm:
    """What a model's pictures are: their size, and how a frame becomes one.

    A frame is resized, its aspect ratio kept, until it just covers (height, width) / `crop_pct`; a view
    is a crop of (height, width) from that. So does timm, but for its cards that squash pictures.
    """

    size: Size
    interpolation: str = "bilinear"
    crop_pct: float = 1.0

    @classmethod
    def of(cls, transform: TransformConfig) -> InputForm:
        """Raises VidpipeError where something is left to the card of the backbone's weights."""
        if not transform.complete:
            raise VidpipeError(
                "transform: size, interpolation or crop_pct are left to the card of the backbone's "
                "weights, and no backbone is at hand; give numbers"
            )
        assert transform.size is not None
        assert transform.crop_pct != "card"
        return cls(transform.size, transform.interpolation, transform.crop_pct)

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width)."""
        return sides(self.size)

    @property
    def mode(self) -> InterpolationMode:
        return InterpolationMode(self.interpolation)

    def identity(self) -> list[Any]:
        """What stands for it in an identity: the size alone, as long as the rest is the papers'."""
        rest = (self.interpolation, self.crop_pct)
        return [self.size] if rest == ("bilinear", 1.0) else [self.size, *rest]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a frame of `height` x `width` is resized before it is cropped."""
        rows, columns = (math.floor(side / self.crop_pct) for side in self.sides)
        if rows * width >= columns * height:
            return rows, rows * width // height
        return columns * height // width, columns

    def __str__(self) -> str:
        """What is done to a frame, in words that stand for any size."""
        covered = "short side resized to" if isinstance(self.size, int) else "resized to cover"
        rest = "" if self.crop_pct == 1 else f" / {self.crop_pct:g}"
        how = "" if self.interpolation == "bilinear" else f" ({self.interpolation})"
        return f"{covered} the size{rest}{how} and cropped"


def crop_views(
    frames: Tensor, positions: NDArray[np.int64], form: InputForm, spatial_crops: int
) -> Tensor:
    """(U, 3, H, W) uint8 frames -> (clips x crops, T, 3, h, w), by (clips, T) indices into them.

    Three crops lie side by side along the side of which the crop leaves more out: of a landscape frame
    and a square input left, centre and right. A frame with the input's own aspect ratio has three equal
    ones. The frames are resized once and then cropped: three crops overlap, and one by one they would
    have 1.7 times the pixels of a 16:9 frame.
    """
    size = list(form.resized(*frames.shape[-2:]))
    frames = F.resize(frames, size, interpolation=form.mode, antialias=True)
    height, width = form.sides
    over = frames.shape[-2] - height, frames.shape[-1] - width
    where = torch.from_numpy(positions)
    views = []
    for fraction in (0.5,) if spatial_crops == 1 else (0.0, 0.5, 1.0):
        down, across = (fraction, 0.5) if over[0] > over[1] else (0.5, fraction)
        top, left = round(over[0] * down), round(over[1] * across)
        views.append(frames[..., top : top + height, left : left + width][where])
    return torch.stack(views, 1).flatten(0, 1)


def middle_view(frames: Tensor, form: InputForm) -> Tensor:
    """(T, 3, H, W) or (B, T, 3, H, W) uint8 frames -> (B, T, 3, h, w), the centre crop of `crop_views`.
    Raises VidpipeError for another shape or type."""
    found = frames if isinstance(frames, Tensor) else torch.as_tensor(frames)
    if found.dtype != torch.uint8 or found.ndim not in (4, 5) or found.shape[-3] != 3:
        raise VidpipeError(
            f"frames: {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}, expected uint8 "
            "(T, 3, H, W) or (B, T, 3, H, W)"
        )
    clips = found if found.ndim == 5 else found[None]
    flat = clips.flatten(0, 1)
    view = crop_views(flat, np.arange(len(flat))[None], form, 1)[0]
    return view.unflatten(0, clips.shape[:2])


def batch_input(
    batch: Mapping[str, Any],
    normalisation: tuple[Sequence[float], Sequence[float]],
    device: torch.device,
) -> Tensor | list[Tensor]:
    """What a model takes of a loader's batch: its video, (B, T, 3, h, w), or the first view of
    (B, views, T, 3, h, w); where frozen features were kept, those, fp32 (B, ...)."""
    if "features" in batch:
        return [x.to(device, non_blocking=True).float() for x in batch["features"]]
    video = batch["video"].to(device, non_blocking=True)
    return to_input(video if video.ndim == 5 else video[:, 0], *normalisation)


def to_input(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., T, 3, H, W) uint8 -> (..., 3, T, H, W) fp32, normalised on the tensor's own device."""
    # One layout in memory, that of a decoder, whoever stacked the clips: the last bits of a convolution
    # depend on it, and loader workers and kept features would train other weights.
    x = video.movedim(-3, -1).contiguous().movedim(-1, -4).float()
    shape = (-1, 1, 1, 1)
    offset = torch.tensor(mean, device=x.device).view(shape) * 255
    scale = torch.tensor(std, device=x.device).view(shape) * 255
    return (x - offset) / scale
