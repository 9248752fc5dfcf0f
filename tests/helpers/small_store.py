"""A store of ten small clips, seven of them for training, and what tests ask of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from clips import moving
from project import PROJECT
from tracking_store import copy_store

from vidpipe.config.overlay import read_yaml
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet
from vidpipe.video.encode import encode_h264
from vidpipe.video.store import FrameStore, write_manifest

UNIFORM = SamplingConfig(strategy="uniform", num_frames=4)


SEVERAL = ("a", "b", "a|b", "")


def small_store(root: Path, clips: int = 10, task: str = "single_label") -> FrameStore:
    """Clips of 20 frames, 64 x 48, of classes a and b in turn; the last three are for val. Of task
    multilabel, a clip has one of SEVERAL in turn."""
    labels = "ab" if task == "single_label" else SEVERAL
    rows, data = [], b""
    for i in range(clips):
        clip = encode_h264(iter(np.roll(moving(20), 3 * i, 2)), 20, 8).data
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": labels[i % len(labels)]},
                **{"split": "train" if i < clips - 3 else "val", "status": "ok", "reason": ""},
                **{"detail": "", "frames": 20, "fps": 25.0, "width": 64, "height": 48},
                **{"sha256": str(i), "shard": 0, "offset": len(data), "nbytes": len(clip)},
            }
        )
        data += clip
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"), task=task)
    return FrameStore(root)


def small_project(root: Path, clips: int = 10, task: str = "single_label", **train: object) -> None:
    """A folder to run `vidpipe` in: params.yaml, a store, the embedded backbone, MLflow's tables."""
    raw = read_yaml(PROJECT / "params.yaml")
    short = {"epochs": 4, "batch_size": 4, "warmup_epochs": 1, "threads": 1, "eval_every": 1}
    weights = str(PROJECT / raw["backbone"]["weights"])
    raw |= {
        "train": raw["train"] | short | {"memory_gb_per_worker": 0.5} | train,
        "sampling": {"strategy": "uniform", "num_frames": 4},
        "backbone": raw["backbone"] | {"weights": weights},
        "evaluate": {},
    }
    raw["data"] = raw["data"] | {"task": task}
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    (root / "data" / "store").mkdir(parents=True)
    small_store(root / "data" / "store", clips, task)
    copy_store(root)


def train_set(store: FrameStore, **transform: object) -> TrainSet:
    config = TransformConfig.model_validate({"size": 32, "flip": True, **transform})
    return TrainSet(Clips(store, "train", ["a", "b"]), UNIFORM, config, seed=5)
