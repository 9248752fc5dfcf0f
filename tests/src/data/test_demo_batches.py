"""What params.yaml asks of the loader gives the very batches it gave when results/ was made.

The hashes were taken at 21fec22, before transforms and orders had files of their own. Frames are
drawn here and not decoded, so that no codec build has a say in them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from vidpipe.data.batches import EpochBatches
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.video.store import FrameStore, write_manifest

SAMPLING = SamplingConfig(strategy="uniform", num_frames=8)
TRANSFORM = TransformConfig(size=48, crop="random_resized", scale=(0.7, 1.0), flip=False)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrameStore:
    rows = [
        {
            **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "ab"[i % 2], "split": "train"},
            **{"status": "ok", "frames": 20 + i, "fps": 25.0, "width": 64 + 8 * i, "height": 64},
            **{"shard": 0, "offset": 0, "nbytes": 1},
        }
        for i in range(7)
    ]
    write_manifest(tmp_path, rows, ("a", "b"))

    def noise(store: FrameStore, clip: int, indices: list[int]) -> np.ndarray:
        shape = (20 + clip, 64, 64 + 8 * clip, 3)
        return np.random.default_rng(clip).integers(0, 256, shape, dtype=np.uint8)[indices]

    monkeypatch.setattr(FrameStore, "read", noise)
    return FrameStore(tmp_path)


def digest(*arrays: object) -> str:
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()[:16]


def test_training_samples(store: FrameStore) -> None:
    data = TrainSet(Clips(store, "train", ["a", "b"]), SAMPLING, TRANSFORM, seed=0)
    items = [data[(epoch, i)] for epoch in (0, 3) for i in range(len(data))]
    assert [item["label"] for item in items] == [i % 2 for i in range(7)] * 2
    assert digest(*(item["video"] for item in items)) == "abdecbe04c053d67"


@pytest.mark.parametrize("crops", [1, 3])
def test_views(store: FrameStore, crops: int) -> None:
    views = ViewSet(Clips(store, "train", ["a", "b"]), SAMPLING, TRANSFORM, 1, crops)
    found = digest(*(views[i]["video"] for i in range(len(views))))
    assert found == {1: "d0b2d66f55b81cda", 3: "be9f4c83b0b242ed"}[crops]


def test_orders() -> None:
    def order(size: int, batch: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
        batches = EpochBatches(size, batch, 0, rank, world, drop_last=True)
        batches.epoch = 5
        return list(batches)

    assert order(10, 4, 0, 1) == [
        [(5, 7), (5, 1), (5, 6), (5, 4)],
        [(5, 5), (5, 8), (5, 0), (5, 3)],
    ]
    assert digest(order(333, 32, 0, 1)) == "4a210f9268ab604c"
    assert digest(order(333, 32, 1, 2)) == "79f7237b6dccaff5"
