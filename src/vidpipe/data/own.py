"""A torch data set of one's own, in the form that training and validation take clips in.

Its items are (frames, label): uint8 RGB (T, 3, H, W) of any size and a class index, or (C,) 0 and 1
where a clip may have several classes. What it draws from
the global generators of torch, numpy and random is a function of seed, epoch and item, as for our own
clips: no number of loader processes changes it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from vidpipe.data.model_input import InputForm, middle_view
from vidpipe.errors import VidpipeError


@dataclass(frozen=True)
class OwnClips:
    """The items of `data` by name and number, checked when they are read."""

    data: Dataset[Any]
    name_of_set: str
    num_frames: int
    num_classes: int
    form: InputForm
    seed: int
    several: bool = False
    """Whether a clip may have several classes."""

    def __post_init__(self) -> None:
        if isinstance(self.data, IterableDataset) or not hasattr(self.data, "__len__"):
            raise VidpipeError(
                f"{self.name_of_set}: a {type(self.data).__name__}, expected a data set with a length "
                "and items by index: clips are shuffled anew in every epoch"
            )
        if len(self) == 0:
            raise VidpipeError(f"{self.name_of_set}: no clip in it")

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    @property
    def shards(self) -> NDArray[np.int64]:
        """All in one."""
        return np.zeros(len(self), np.int64)

    def name(self, i: int) -> str:
        return f"{self.name_of_set}[{i}]"

    def read(self, epoch: int, i: int) -> tuple[Tensor, int | Tensor]:
        """((T, 3, h, w) uint8, label: a class index, or of several (C,) fp32). Raises VidpipeError for
        an item of another form."""
        with seeded(self.seed, epoch, i):
            item = self.data[i]
        try:
            frames, label = item
            label = torch.as_tensor(label).float() if self.several else int(label)
            frames = torch.as_tensor(frames)
            video = middle_view(frames, self.form)
        except VidpipeError as error:
            raise VidpipeError(f"{self.name(i)}: {error}") from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise VidpipeError(
                f"{self.name(i)}: expected (frames, label), uint8 (T, 3, H, W) and "
                f"{'0 or 1 of each class' if self.several else 'a class index'} ({error})"
            ) from None
        if frames.ndim != 4 or len(frames) != self.num_frames:
            raise VidpipeError(
                f"{self.name(i)}: frames {tuple(frames.shape)}, expected ({self.num_frames}, 3, H, W): "
                f"the model was made for {self.num_frames} frames"
            )
        if isinstance(label, Tensor):
            if label.shape != (self.num_classes,) or not ((label == 0) | (label == 1)).all():
                raise VidpipeError(
                    f"{self.name(i)}: label of shape {tuple(label.shape)}, expected "
                    f"({self.num_classes},): 1 for each class of the clip, else 0"
                )
        elif not 0 <= label < self.num_classes:
            raise VidpipeError(
                f"{self.name(i)}: label {label}, expected 0 to {self.num_classes - 1}: the model was "
                f"made for {self.num_classes} classes"
            )
        return video[0], label


@dataclass(frozen=True)
class OwnTrainSet(Dataset[dict[str, Any]]):
    """As `TrainSet`, without its augmentation: that is the data set's own."""

    clips: OwnClips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, i = key
        video, label = self.clips.read(epoch, i)
        return {"video": video, "label": label, "index": i, "asked": i, "replaced": False}


@dataclass(frozen=True)
class OwnViewSet(Dataset[dict[str, Any]]):
    """As `ViewSet` with one view a clip."""

    clips: OwnClips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        video, label = self.clips.read(0, i)
        return {"video": video[None], "label": label, "index": i}


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Within it, the global CPU generators of torch, numpy and random are a function of `words`."""
    seeds = np.random.SeedSequence(words).generate_state(3)
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seeds[0]))
        np.random.seed(int(seeds[1]))
        random.seed(int(seeds[2]))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
