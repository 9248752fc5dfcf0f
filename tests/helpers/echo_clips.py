"""A data set in memory in which only frames that lie two apart tell the class."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

T, SIZE, COLUMNS = 8, 48, 4
LAG = 2


class Echo(torch.utils.data.Dataset):
    """A bar at one of four columns. Two tracks take turns, each going right (class 1) or left (0) by one
    column a time, around the edge; they start anywhere, so that neighbouring frames say nothing."""

    def __init__(self, size: int, views: bool, seed: int = 0) -> None:
        self.size, self.views = size, views
        self.start = np.random.default_rng([seed, views]).integers(COLUMNS, size=(size, LAG))
        self.clips = SimpleNamespace(name=lambda i: f"clip{i}", shards=np.arange(size) // 2)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: object) -> dict:
        i = key[1] if isinstance(key, tuple) else key
        video = torch.zeros(T, 3, SIZE, SIZE, dtype=torch.uint8)
        step = 1 if i % 2 else -1
        for t in range(T):
            column = (self.start[i, t % LAG] + step * (t // LAG)) % COLUMNS
            x = int(column) * SIZE // COLUMNS
            video[t, :, :, x : x + SIZE // COLUMNS] = 255
        item = {"video": video[None] if self.views else video, "label": i % 2, "index": i}
        return {**item, "asked": i, "replaced": False}
