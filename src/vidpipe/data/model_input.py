"""Frames as a model takes them: resized and cropped while they are uint8, normalised on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.errors import VidpipeError


def crop_views(
    frames: Tensor, positions: NDArray[np.int64], size: int, spatial_crops: int
) -> Tensor:
    """(U, 3, H, W) uint8 frames -> (clips x crops, T, 3, size, size), by (clips, T) indices into them.

    The frames are resized once and then cropped: three crops overlap, and one by one they would have
    1.7 times the pixels of a 16:9 frame.
    """
    frames = F.resize(frames, [size], antialias=True)
    height, width = frames.shape[-2:]
    where = torch.from_numpy(positions)
    views = []
    for fraction in (0.5,) if spatial_crops == 1 else (0.0, 0.5, 1.0):
        top, left = (round((side - size) * fraction) for side in (height, width))
        views.append(frames[..., top : top + size, left : left + size][where])
    return torch.stack(views, 1).flatten(0, 1)


def middle_view(frames: Tensor, size: int) -> Tensor:
    """(T, 3, H, W) or (B, T, 3, H, W) uint8 frames -> (B, T, 3, size, size), the centre crop of
    `crop_views`. Raises VidpipeError for another shape or type."""
    found = frames if isinstance(frames, Tensor) else torch.as_tensor(frames)
    if found.dtype != torch.uint8 or found.ndim not in (4, 5) or found.shape[-3] != 3:
        raise VidpipeError(
            f"frames: {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}, expected uint8 "
            "(T, 3, H, W) or (B, T, 3, H, W)"
        )
    clips = found if found.ndim == 5 else found[None]
    flat = clips.flatten(0, 1)
    view = crop_views(flat, np.arange(len(flat))[None], size, 1)[0]
    return view.unflatten(0, clips.shape[:2])


def to_input(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., T, 3, H, W) uint8 -> (..., 3, T, H, W) fp32, normalised on the tensor's own device."""
    x = video.transpose(-4, -3).float()
    shape = (-1, 1, 1, 1)
    offset = torch.tensor(mean, device=x.device).view(shape) * 255
    scale = torch.tensor(std, device=x.device).view(shape) * 255
    return (x - offset) / scale
