"""What training does to the pixels of a clip: crop, flip, RandAugment, jitter, erasing.

One draw holds for all frames of a clip, and everything is uint8. The crop comes first and its box is
in pixels of the decoded frames, so no pixel outside it is ever computed on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from vidpipe.config.messages import nearest
from vidpipe.data.config import RandAugmentConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError

logger = logging.getLogger(__name__)

# The mean colour of CLIP's and of ImageNet's pictures: what is erased is then about zero for the
# backbone, as in AIM's code, which erases after normalising.
ERASED = (123, 117, 104)
# Something-Something v2's classes that a mirror swaps: "... from left to right" and the like. The
# same numbers are in ZeroI2V's and MMAction2's configs.
SSV2_CLASSES = 174
SSV2_PAIRS = ((86, 87), (93, 94), (166, 167))


class ClipTransform:
    """Draws from torch's global CPU generator, as torchvision does: seed it before every call."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self.form = form = InputForm.of(config)
        height, width = form.sides
        self.resized_crop = T.RandomResizedCrop(
            form.sides,
            scale=config.scale,
            # The distortion is relative to the input's own aspect ratio.
            ratio=tuple(ratio * (width / height) for ratio in config.ratio),
            interpolation=form.mode,
            antialias=True,
        )
        steps: list[Any] = []
        if (augment := config.rand_augment) is not None:
            steps.append(RandAugment(augment))
        if (jitter := config.color_jitter) is not None:
            steps.append(T.ColorJitter(**jitter.model_dump()))
        if config.erase_probability:
            steps.append(T.RandomErasing(config.erase_probability, value=ERASED))
        self.after_crop = steps

    def __call__(self, frames: Tensor) -> tuple[Tensor, bool]:
        """(T, 3, H, W) uint8 -> (T, 3, h, w) uint8, and whether it was mirrored."""
        video = self._crop(frames)
        flipped = self.config.flip and torch.rand(1).item() < 0.5
        if flipped:
            video = F.horizontal_flip(video)
        if self.after_crop:
            # As a Video, the leading dimension is time and a draw is one for the whole clip.
            video = tv_tensors.Video(video)
            for step in self.after_crop:
                video = step(video)
            video = video.as_subclass(Tensor)
        return video, flipped

    def _crop(self, frames: Tensor) -> Tensor:
        crop = self.config.crop
        if crop == "random_resized":
            cropped: Tensor = self.resized_crop(frames)
            return cropped
        # The box of the decoded frame that becomes the input: to resize the frame and then crop is to
        # crop this and resize.
        height, width = frames.shape[-2:]
        rows, columns = largest_box(height, width, self.form.sides)
        if crop == "short_side_jitter" and self.config.short_side is not None:
            low, high = self.config.short_side
            target = int(torch.randint(low, high + 1, ()))
            short = min(self.form.sides)
            rows, columns = (max(1, round(short * side / target)) for side in (rows, columns))
        if crop == "center":
            rows, columns = (max(1, round(side * self.form.crop_pct)) for side in (rows, columns))
            top, left = (height - rows) // 2, (width - columns) // 2
        else:
            top = int(torch.randint(0, height - rows + 1, ()))
            left = int(torch.randint(0, width - columns + 1, ()))
        box = F.crop(frames, top, left, rows, columns)
        return F.resize(box, list(self.form.sides), interpolation=self.form.mode, antialias=True)


def largest_box(height: int, width: int, aspect: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the largest box of aspect ratio `aspect` (height, width) within a frame."""
    tall, wide = aspect
    if height * wide <= width * tall:
        return height, max(1, round(height * wide / tall))
    return max(1, round(width * tall / wide)), width


class RandAugment:
    """torchvision's operations with timm's probability and Gaussian magnitude, drawn for each."""

    STEPS = 100  # of a magnitude: torchvision takes one of equally spaced values

    def __init__(self, config: RandAugmentConfig) -> None:
        self.config = config
        self.operation = T.RandAugment(num_ops=1, num_magnitude_bins=30 * self.STEPS + 1)

    def __call__(self, video: tv_tensors.Video) -> tv_tensors.Video:
        config = self.config
        for _ in range(config.num_ops):
            if torch.rand(()) >= config.probability:
                continue
            magnitude = config.magnitude + config.magnitude_std * torch.randn(()).item()
            self.operation.magnitude = round(min(max(magnitude, 0.0), 30.0) * self.STEPS)
            video = self.operation(video)
        return video


def mirrored_labels(config: TransformConfig, classes: Sequence[str]) -> NDArray[np.int64]:
    """(C,): the class index of a mirrored clip of each class, by `transform.flip_pairs`.

    Raises VidpipeError for a class that does not exist or is in two pairs, and for `ssv2` on another
    number of classes. Warns, once, of classes that look like a pair and are in none.
    """
    mirrored = np.arange(len(classes), dtype=np.int64)
    if not config.flip:
        return mirrored
    for a, b in _pairs(config, classes):
        for one, other in ((a, b), (b, a)):
            if mirrored[one] != one:
                raise VidpipeError(
                    f"transform.flip_pairs: class {classes[one]!r} is in more than one pair"
                )
            mirrored[one] = other
    unlisted = [
        f"{classes[a]} / {classes[b]}" for a, b in _directional(classes) if mirrored[a] != b
    ]
    if unlisted:
        logger.warning(
            "transform.flip mirrors clips of %s%s without swapping their labels; name such pairs in "
            "transform.flip_pairs, or turn flip off",
            ", ".join(unlisted[:4]),
            f" and {len(unlisted) - 4} more pairs" if len(unlisted) > 4 else "",
        )
    return mirrored


def _pairs(config: TransformConfig, classes: Sequence[str]) -> Sequence[tuple[int, int]]:
    if config.flip_pairs == "ssv2":
        if len(classes) != SSV2_CLASSES:
            raise VidpipeError(
                f"transform.flip_pairs: ssv2 names classes by their number in the list of "
                f"{SSV2_CLASSES}; this data set has {len(classes)}"
            )
        return SSV2_PAIRS
    index = {name: i for i, name in enumerate(classes)}
    for name in (name for pair in config.flip_pairs for name in pair):
        if name not in index:
            raise VidpipeError(
                f"transform.flip_pairs: {name!r} is not a class{nearest(name, classes)}"
            )
    return [(index[a], index[b]) for a, b in config.flip_pairs]


def _directional(classes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (first index, second index) whose names become each other when left and right swap."""
    other = {"left": "right", "right": "left"}
    index = {name.lower(): i for i, name in enumerate(classes)}
    found = []
    for name, i in index.items():
        swapped = re.sub(r"(?<![a-z])(left|right)(?![a-z])", lambda m: other[m[0]], name)
        if i < index.get(swapped, -1):
            found.append((i, index[swapped]))
    return found
