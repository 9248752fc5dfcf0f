"""Clips for training and for evaluation: uint8 until the device, cropped before anything else.

A training sample is f(seed, epoch, index) and nothing else, so batches do not depend on the number
of loader processes or of training workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2 as T
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.sampling import test_indices, train_indices
from vidpipe.errors import VidpipeError
from vidpipe.video.store import FrameStore


class Clips:
    """The rows of one split of a store, with class indices."""

    def __init__(self, store: FrameStore, split: str, classes: Sequence[str]) -> None:
        self.store = store
        self.rows = np.flatnonzero(store.rows.split == split)
        if len(self.rows) == 0:
            raise VidpipeError(f"{store.root}: no usable clip in split {split!r}")
        index = {name: i for i, name in enumerate(classes)}
        labels = store.rows.label.iloc[self.rows]
        if unknown := sorted(set(labels) - index.keys()):
            raise VidpipeError(
                f"{store.root}: label {unknown[0]!r} is not among the {len(classes)} classes of "
                "data.classes"
            )
        self.labels = np.array([index[label] for label in labels])
        self.ids: list[str] = store.rows.id.iloc[self.rows].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int, indices: Sequence[int]) -> Tensor:
        """(len(indices), 3, H, W) uint8."""
        frames = self.store.read(int(self.rows[i]), indices)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def num_frames(self, i: int) -> int:
        return self.store.num_frames(int(self.rows[i]))


class TrainSet(Dataset[dict[str, Any]]):
    """Items are addressed by (epoch, index); `video` is (T, 3, S, S) uint8."""

    def __init__(
        self, clips: Clips, sampling: SamplingConfig, transform: TransformConfig, seed: int
    ) -> None:
        self.clips = clips
        self.sampling = sampling
        self.seed = seed
        steps: list[Any] = []
        if transform.crop == "random_resized":
            steps.append(
                T.RandomResizedCrop(
                    transform.size, scale=transform.scale, ratio=transform.ratio, antialias=True
                )
            )
        else:
            steps.append(T.Resize(transform.size, antialias=True))
            crop = T.RandomCrop if transform.crop == "random" else T.CenterCrop
            steps.append(crop(transform.size))
        if transform.flip:
            steps.append(T.RandomHorizontalFlip())
        # One call on all frames: every frame of a clip gets the same crop and flip.
        self.transform = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, i = key
        rng = np.random.default_rng([self.seed, epoch, i])
        draws = rng.random(self.sampling.num_frames)
        indices = train_indices(self.clips.num_frames(i), self.sampling, draws)
        frames = self.clips.read(i, indices.tolist())
        # torchvision draws from torch's global generator: seed it for this sample, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            video = self.transform(frames)
        return {"video": video, "label": int(self.clips.labels[i]), "index": i}


class ViewSet(Dataset[dict[str, Any]]):
    """Items are addressed by index; `video` is (views, T, 3, S, S) uint8, all read in one pass.

    Views are temporal clips x spatial crops (1: centre; 3: along the long side), clips first.
    """

    def __init__(
        self,
        clips: Clips,
        sampling: SamplingConfig,
        transform: TransformConfig,
        temporal_clips: int = 1,
        spatial_crops: int = 1,
    ) -> None:
        self.clips = clips
        self.sampling = sampling
        self.temporal_clips = temporal_clips
        self.spatial_crops = spatial_crops
        self.size = transform.size
        self.resize = T.Resize(transform.size, antialias=True)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        indices = test_indices(self.clips.num_frames(i), self.sampling, self.temporal_clips)
        unique, where = np.unique(indices, return_inverse=True)
        frames = self.resize(self.clips.read(i, unique.tolist()))
        height, width = frames.shape[-2:]
        views = []
        for fraction in (0.5,) if self.spatial_crops == 1 else (0.0, 0.5, 1.0):
            top, left = (round((side - self.size) * fraction) for side in (height, width))
            crop = frames[..., top : top + self.size, left : left + self.size]
            views.append(crop[torch.from_numpy(where.reshape(indices.shape))])
        video = torch.stack(views, 1).flatten(0, 1)
        return {"video": video, "label": int(self.clips.labels[i]), "index": i}


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """This rank's part of each global batch of one epoch: the same global order for any world size.

    The last, incomplete batch is dropped, unless it is the only one.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.batch_size = min(batch_size, size - size % world_size)
        if self.batch_size == 0:
            raise VidpipeError(f"{size} training clips cannot feed {world_size} workers")
        self.size, self.seed = size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size][self.rank :: self.world_size]
            yield [(self.epoch, int(i)) for i in batch]


def train_loader(data: TrainSet, batches: EpochBatches, workers: int) -> DataLoader[dict[str, Any]]:
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def to_input(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., T, 3, H, W) uint8 -> (..., 3, T, H, W) fp32, normalised on the tensor's own device."""
    x = video.transpose(-4, -3).float()
    shape = (-1, 1, 1, 1)
    offset = torch.tensor(mean, device=x.device).view(shape) * 255
    scale = torch.tensor(std, device=x.device).view(shape) * 255
    return (x - offset) / scale
