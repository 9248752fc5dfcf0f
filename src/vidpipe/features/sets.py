"""Training and validation clips whose samples are frozen features from the disk, not frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vidpipe.data.batches import REPEAT, parts
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.features.store import FeatureStore

Places = NDArray[np.int32]
"""(clips, views, 2): file and row in a store."""


ANY = 0
"""A size: rows that serve batches of every size."""


class Kept:
    """Rows of one set of clips, by the size of the batch that they were computed in.

    The last bits of a feature depend on the shape of the batch that it was computed in. `exact` has a
    store for each size of which the training makes batches; most are one and the same.
    """

    def __init__(self, clips: Clips, views: int) -> None:
        self.clips, self.views = clips, views
        self.of_size: dict[int, tuple[FeatureStore, Places]] = {}

    def add(self, size: int, store: FeatureStore, names: Sequence[Sequence[str]]) -> None:
        """`names`: of each clip's views; those that `store` does not have are never asked for."""
        places = [[store.places.get(name, (-2, -2)) for name in own] for own in names]
        self.of_size[size] = store, np.array(places, np.int32).reshape(len(names), self.views, 2)

    def read(self, i: int, view: int, size: int) -> tuple[list[Any], bool]:
        """Tensors (...), and whether the view is mirrored. Raises VidpipeError: unreadable."""
        store, places = self.of_size.get(size) or self.of_size[ANY]
        file, row = places[i, view].tolist()
        if file == -1:
            raise VidpipeError(f"clip {self.clips.name(i)} could not be read for its features")
        return store.read(file, row)


class CachedTrainSet(Dataset[dict[str, Any]]):
    """As `TrainSet`, with `features`, a list of tensors (...), in place of `video`."""

    def __init__(self, plain: TrainSet, kept: Kept, accumulate: int) -> None:
        self.plain, self.kept, self.accumulate = plain, kept, accumulate
        self.clips = plain.clips

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """A worker's clips of one step; torch's loader asks for them together."""
        sizes = (p.stop - p.start for p in parts(len(keys), self.accumulate) for _ in keys[p])
        return [
            self.plain.drawn(key, partial(self._sample, key[0], size))
            for key, size in zip(keys, sizes, strict=True)
        ]

    def _sample(self, epoch: int, size: int, i: int, rng: np.random.Generator) -> dict[str, Any]:
        # A clip that an epoch has twice is another view the second time.
        view = (epoch % REPEAT + epoch // REPEAT) % self.kept.views
        features, flipped = self.kept.read(i, view, size)
        return {"features": features, **self.plain.target(i, flipped)}


class CachedTestViews(Dataset[dict[str, Any]]):
    """As `ViewSet` with all its V views, with `features`, tensors (V, ...), in place of `video`. `size`:
    of the batches that they were computed in."""

    def __init__(self, plain: ViewSet, kept: Kept, size: int) -> None:
        self.clips, self.spatial_crops = plain.clips, plain.spatial_crops
        self.kept, self.size = kept, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        each = [self.kept.read(i, view, self.size)[0] for view in range(self.kept.views)]
        features = [torch.stack(parts) for parts in zip(*each, strict=True)]
        return {"features": features, "label": self.clips.target(i), "index": i}


class CachedViewSet(Dataset[dict[str, Any]]):
    """As `ViewSet` with one view a clip, with `features` in place of `video`. `sizes` (N,): of the batch
    that each clip is validated in."""

    def __init__(self, plain: ViewSet, kept: Kept, sizes: Sequence[int]) -> None:
        self.plain, self.kept, self.sizes = plain, kept, sizes
        self.clips = plain.clips

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, i: int) -> dict[str, Any]:
        features, _ = self.kept.read(i, 0, self.sizes[i])
        return {"features": features, "label": self.clips.target(i), "index": i}
