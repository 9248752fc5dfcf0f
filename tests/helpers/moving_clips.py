"""A data set in memory whose classes are directions of time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

T, SIZE = 4, 32


HALF = ((0.5,) * 3, (0.5,) * 3)


class Moving(torch.utils.data.Dataset):
    """A bar that moves left or right: the class is nothing but the order of the frames."""

    def __init__(self, size: int, views: bool) -> None:
        self.size, self.views = size, views
        self.clips = SimpleNamespace(name=lambda i: f"clip{i}", shards=np.arange(size) // 2)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: object) -> dict:
        i = key[1] if isinstance(key, tuple) else key
        video = torch.zeros(T, 3, SIZE, SIZE, dtype=torch.uint8)
        for t in range(T):
            x = 2 + 7 * (t if i % 2 else T - 1 - t) + (i // 2) % 4
            video[t, :, :, x : x + 6] = 255
        item = {"video": video[None] if self.views else video, "label": i % 2, "index": i}
        return {**item, "asked": i, "replaced": False}
