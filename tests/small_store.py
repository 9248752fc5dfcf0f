"""A store of ten small clips, seven of them for training, and what tests ask of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from test_video import moving

from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet
from vidpipe.video.encode import encode_h264
from vidpipe.video.store import FrameStore, write_manifest

UNIFORM = SamplingConfig(strategy="uniform", num_frames=4)


def small_store(root: Path) -> FrameStore:
    """Ten clips of 20 frames, 64 x 48, of classes a and b in turn; the last three are for val."""
    rows, data = [], b""
    for i in range(10):
        clip = encode_h264(iter(np.roll(moving(20), 3 * i, 2)), 20, 8).data
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "ab"[i % 2]},
                **{"split": "train" if i < 7 else "val", "status": "ok", "reason": ""},
                **{"detail": "", "frames": 20, "fps": 25.0, "width": 64, "height": 48},
                **{"sha256": str(i), "shard": 0, "offset": len(data), "nbytes": len(clip)},
            }
        )
        data += clip
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"))
    return FrameStore(root)


def train_set(store: FrameStore, **transform: object) -> TrainSet:
    config = TransformConfig.model_validate({"size": 32, "flip": True, **transform})
    return TrainSet(Clips(store, "train", ["a", "b"]), UNIFORM, config, seed=5)
