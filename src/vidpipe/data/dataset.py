"""Clips for training and for evaluation: uint8 until the device, cropped before anything else.

A training sample is f(seed, epoch, index) and nothing else, so batches do not depend on the number
of loader processes or of training workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidpipe.data.batches import EpochBatches
from vidpipe.data.config import SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.data.labels import label_sets, targets
from vidpipe.data.model_input import InputForm, crop_views
from vidpipe.data.sampling import test_indices, train_indices
from vidpipe.data.transforms import ClipTransform, mirrored_labels
from vidpipe.errors import VidpipeError
from vidpipe.text import printable
from vidpipe.video.store import FrameStore

logger = logging.getLogger(__name__)

Sample = Callable[[int, np.random.Generator], dict[str, Any]]

ATTEMPTS = 8
"""Clips tried for one training sample before its read error ends the training."""


class NamedClips(Protocol):
    """What a training asks of its clips beside the samples."""

    @property
    def shards(self) -> NDArray[np.int64]: ...

    def name(self, i: int) -> str: ...


class Samples(Protocol):
    """What `Trainer` trains on: by (epoch, index), a sample as `TrainSet` describes it."""

    @property
    def clips(self) -> NamedClips: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]: ...


class Views(Protocol):
    """What a validation goes through: by index, a sample as `ViewSet` describes it."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...


class Clips:
    """The rows of one split of a store, with their targets: `labels` (N,) are class indices; where a
    clip may have several classes, (N, C) uint8, 1 where it has the class.

    `subset` applies to split `train` only. What every loader process holds of a clip is a few
    numbers and the bytes of its id: no Python objects.
    """

    def __init__(
        self,
        store: FrameStore,
        split: str,
        classes: Sequence[str],
        subset: SubsetConfig | None = None,
    ) -> None:
        if store.task == "detection":
            raise VidpipeError(
                f"{store.root}: of task detection, whose samples are boxes in key frames; this looks at "
                "whole clips"
            )
        self.store = store
        self.classes = tuple(classes)
        self.rows = np.flatnonzero(store.rows.split == split)
        if len(self.rows) == 0:
            raise VidpipeError(f"{store.root}: no usable clip in split {split!r}")
        several = store.task == "multilabel"
        if split == "train" and subset and (subset.fraction or subset.per_class):
            from vidpipe.data.subset import subset_rows

            own = store.rows.iloc[self.rows]
            sets = label_sets(own.label.tolist(), several)
            self.rows = self.rows[subset_rows(own.id.tolist(), sets, subset)]
        found = store.rows.label.iloc[self.rows].tolist()
        known = {label for own in label_sets(found, several) for label in own}
        if unknown := sorted(known - set(classes)):
            raise VidpipeError(
                f"{store.root}: label {unknown[0]!r} is not among the {len(classes)} classes of "
                "data.classes"
            )
        self.labels = targets(found, classes, several)
        self.shards = store.rows["shard"].to_numpy(dtype=np.int64)[self.rows]
        self._ids = pa.array(store.rows.id.iloc[self.rows].tolist(), pa.large_string())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[str]:
        """A new list: ask once where all are needed."""
        ids: list[str] = self._ids.to_pylist()
        return ids

    def name(self, i: int) -> str:
        """The id of clip `i`."""
        return str(self._ids[i])

    def read(self, i: int, indices: Sequence[int]) -> Tensor:
        """(len(indices), 3, H, W) uint8."""
        frames = self.store.read(int(self.rows[i]), indices)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def target(self, i: int) -> int | Tensor:
        """The class index of clip `i`, or its (C,) float 0 and 1."""
        own = self.labels[i]
        return int(own) if self.labels.ndim == 1 else torch.from_numpy(own.astype(np.float32))

    def num_frames(self, i: int) -> int:
        return self.store.num_frames(int(self.rows[i]))


class TrainSet(Dataset[dict[str, Any]]):
    """Items are addressed by (epoch, index); `video` is (T, 3, h, w) uint8.

    A clip that cannot be read gives its place to another, f(seed, epoch, index) like all else:
    `replaced` says so, `asked` is the clip that was to be read and `index` the one that was. Whoever
    consumes the batches counts them: a loader process sees its own share only.
    """

    def __init__(
        self, clips: Clips, sampling: SamplingConfig, transform: TransformConfig, seed: int
    ) -> None:
        self.clips = clips
        self.sampling = sampling
        self.seed = seed
        self.transform = ClipTransform(transform)
        self.mirrored = mirrored_labels(transform, clips.classes)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.drawn(key, self._sample)

    def drawn(self, key: tuple[int, int], sample: Sample) -> dict[str, Any]:
        """What `sample` makes of the clip that `key` asks for; of another where that is unreadable."""
        epoch, asked = key
        i, rng = asked, np.random.default_rng([self.seed, epoch, asked])
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found = sample(i, rng)
            except VidpipeError as error:
                if attempt == ATTEMPTS:
                    raise
                name = printable(self.clips.name(i))
                logger.warning("clip %s: another takes its place (%s)", name, error)
                # Its own draws, too: where this clip has its turn in the epoch, it looks different.
                rng = np.random.default_rng([self.seed, epoch, asked, attempt])
                i = int(rng.integers(len(self.clips)))
            else:
                return {**found, "asked": asked, "replaced": attempt > 1}
        raise AssertionError("unreachable")

    def _sample(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        video, flipped = self.view(i, rng)
        return {"video": video, **self.target(i, flipped)}

    def target(self, i: int, flipped: bool) -> dict[str, Any]:
        """Label and number of clip `i`, whose view was mirrored or not."""
        label = self.clips.target(i)
        if flipped:  # pairs change places, so the same indices serve a class and a row of classes
            label = int(self.mirrored[label]) if isinstance(label, int) else label[self.mirrored]
        return {"label": label, "index": i}

    def view(self, i: int, rng: np.random.Generator) -> tuple[Tensor, bool]:
        """A view of clip `i`, (T, 3, h, w) uint8, and whether it is mirrored."""
        draws = rng.random(self.sampling.num_frames)
        indices = train_indices(self.clips.num_frames(i), self.sampling, draws)
        frames = self.clips.read(i, indices.tolist())
        # torchvision draws from torch's global generator: seed it for this sample, then restore it.
        # Only the CPU's: torch.manual_seed would reset a GPU's, too, which draws the dropout.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return self.transform(frames)


class ViewSet(Dataset[dict[str, Any]]):
    """Items are addressed by index; `video` is (views, T, 3, h, w) uint8, all read in one pass.

    Views are temporal clips x spatial crops (1: centre; 3: along the side that sticks out), clips
    first.
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
        self.form = InputForm.of(transform)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        indices = test_indices(self.clips.num_frames(i), self.sampling, self.temporal_clips)
        unique, where = np.unique(indices, return_inverse=True)
        frames = self.clips.read(i, unique.tolist())
        video = crop_views(frames, where.reshape(indices.shape), self.form, self.spatial_crops)
        return {"video": video, "label": self.clips.target(i), "index": i}


class Loader:
    """A torch DataLoader whose errors are one line, whichever process they come from.

    With `workers`, each decodes ahead up to `prefetch` batches. `keep` leaves them running between
    iterations: for training, where the decoded clips that they hold are asked for again. `device`: where
    the batches go; those for a GPU are pinned.
    """

    def __init__(
        self,
        data: Any,
        *,
        workers: int,
        prefetch: int,
        keep: bool,
        device: torch.device,
        **batching: Any,
    ) -> None:
        self.loader: DataLoader[dict[str, Any]] = DataLoader(
            data,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=keep and workers > 0,
            pin_memory=device.type == "cuda",
            **batching,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self.loader
        except VidpipeError as error:
            # From a process, the message is its whole traceback, which ends in our line.
            line = str(error).strip().splitlines()[-1]
            raise VidpipeError(line.removeprefix("vidpipe.errors.VidpipeError: ")) from error


CPU = torch.device("cpu")
MOST_LOADERS = 4


def loader_workers(wanted: int | None, device: torch.device) -> int:
    """How many processes decode for a model on `device`: `wanted`, or for None some beside a GPU and
    none beside a CPU, which they would only take away."""
    if wanted is not None or device.type == "cpu":
        return wanted or 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_LOADERS, cpus - 1))


def train_loader(
    data: Samples,
    batches: EpochBatches,
    workers: int,
    prefetch: int = 2,
    device: torch.device = CPU,
) -> Loader:
    return Loader(
        data, workers=workers, prefetch=prefetch, keep=True, device=device, batch_sampler=batches
    )


def view_loader(
    data: Dataset[dict[str, Any]],
    batch_size: int,
    workers: int = 0,
    prefetch: int = 2,
    device: torch.device = CPU,
) -> Loader:
    """For a ViewSet or a part of one, in order."""
    return Loader(
        data, workers=workers, prefetch=prefetch, keep=False, device=device, batch_size=batch_size
    )
