"""Which views of clips features are computed of, and whether anything in them is drawn by chance."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import TrainSet, ViewSet
from vidpipe.data.sampling import train_indices
from vidpipe.errors import VidpipeError

Item = tuple[int, int]
"""Number of the clip, and of its view."""


def refuse_random(
    sampling: SamplingConfig, transform: TransformConfig, lengths: Collection[int]
) -> None:
    """Raises VidpipeError, naming all of it, where training views are drawn anew in every epoch.

    `lengths`: of the clips, frames. Where they leave no choice of frames, none is drawn.
    """
    drawn = [] if _fixed_frames(sampling, lengths) else ["sampling.train_frames: random"]
    if transform.crop != "center":
        drawn.append(f"transform.crop: {transform.crop}")
    if transform.flip:
        drawn.append("transform.flip: true")
    drawn += [
        f"transform.{name}"
        for name in ("rand_augment", "color_jitter", "erase_probability")
        if getattr(transform, name)
    ]
    if drawn:
        raise VidpipeError(
            f"train.cache_features: exact, but {', '.join(drawn)} draws other views in every epoch; set "
            "train_frames: middle, crop: center and no augmentation, or cache_features: {views: N}"
        )


def refuse_mixing(transform: TransformConfig) -> None:
    """Raises VidpipeError where pixels of two clips are mixed."""
    for name in ("mixup_alpha", "cutmix_alpha"):
        if getattr(transform, name):
            raise VidpipeError(
                f"train.cache_features: transform.{name} mixes the pixels of clips anew in every step; "
                "set it to 0, or cache_features to off"
            )


def _fixed_frames(sampling: SamplingConfig, lengths: Collection[int]) -> bool:
    first, last = np.zeros(sampling.num_frames), np.full(sampling.num_frames, 1 - 2.0**-32)
    return all(
        np.array_equal(
            train_indices(length, sampling, first), train_indices(length, sampling, last)
        )
        for length in set(lengths)
    )


class Views(Dataset[dict[str, Any]]):
    """Views of clips by `Item`: uint8 `video` (T, 3, h, w), `flipped`, and `readable`."""

    trained_on: ClassVar[bool]
    """Whether the model on them is differentiated."""


class TrainViews(Views):
    """Of training clips, zeros where one is unreadable. `seeds[i][view]` is what is random in a view a
    function of."""

    trained_on = True

    def __init__(self, plain: TrainSet, seeds: list[list[int]]) -> None:
        self.plain, self.seeds = plain, seeds

    def __getitem__(self, item: Item) -> dict[str, Any]:
        i, view = item
        try:
            video, flipped = self.plain.view(i, np.random.default_rng(self.seeds[i][view]))
        except VidpipeError:
            shape = (self.plain.sampling.num_frames, 3, *self.plain.transform.form.sides)
            video = torch.zeros(shape, dtype=torch.uint8)
            return {"video": video, "flipped": False, "readable": False}
        return {"video": video, "flipped": bool(flipped), "readable": True}


class TestViews(Views):
    """All views of clips that are tested. An item after another of the same clip is not read again."""

    trained_on = False
    __test__ = False  # pytest takes its name for a test's

    def __init__(self, plain: ViewSet) -> None:
        self.plain = plain
        self._last: tuple[int, Any] = -1, None

    def __getitem__(self, item: Item) -> dict[str, Any]:
        i, view = item
        if self._last[0] != i:
            self._last = i, self.plain[i]["video"]
        return {"video": self._last[1][view], "flipped": False, "readable": True}


class ValidationViews(Views):
    """The one view of validation clips; an unreadable one is an error, as without kept features."""

    trained_on = False

    def __init__(self, plain: ViewSet) -> None:
        self.plain = plain

    def __getitem__(self, item: Item) -> dict[str, Any]:
        return {"video": self.plain[item[0]]["video"][0], "flipped": False, "readable": True}
