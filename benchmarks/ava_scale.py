"""Detection at the size of AVA without its videos: layout, store, sampling and metric in seconds.

    python benchmarks/ava_scale.py --boxes 230000

Writes annotations of 235 + 64 made-up videos of a quarter of an hour (a key frame a second, boxes with
two or three of 80 actions each, of which 60 count) and as many proposals for validation, and goes
through all that a training and an evaluation do with them but the pictures: the layout, the table of
boxes, the key frames, what a loader asks of each sample, and the frame mAP of random scores. Prints
seconds and the memory of the process after each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import psutil
import torch

from vidpipe.data.config import DataConfig, SamplingConfig
from vidpipe.data.layouts import list_items
from vidpipe.tasks.base import Predictions
from vidpipe.tasks.clips import open_clips
from vidpipe.tasks.detection.dataset import KeyFrames
from vidpipe.tasks.registry import TASKS
from vidpipe.video.store import FrameStore, write_manifest

VIDEOS = {"train": 235, "val": 64}
SECONDS = range(902, 1799)
ACTIONS, COUNTED = 80, 60
Result = TypeVar("Result")


def timed(what: str, work: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = work()
    memory = psutil.Process().memory_info().rss / 2**20
    print(f"{time.perf_counter() - start:7.2f} s  {memory:7.0f} MB  {what}", flush=True)
    return result


def write_annotations(root: Path, boxes: int, rng: np.random.Generator) -> None:
    names = [f'item {{ name: "action {i}" id: {i} }}' for i in range(1, ACTIONS + 1)]
    (root / "ava_action_list_v2.2.pbtxt").write_text("\n".join(names))
    counted = root / "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
    counted.write_text("\n".join(names[:COUNTED]))
    share = boxes / sum(VIDEOS.values())
    for split, count in VIDEOS.items():
        videos = np.array([f"{split}{i:03d}" for i in range(count)])
        for video in videos:
            (root / f"{video}.mp4").touch()
        number = round(share * count)
        corner, size = rng.uniform(0, 0.6, (number, 2)), rng.uniform(0.1, 0.4, (number, 2))
        table = pd.DataFrame(np.concatenate([corner, corner + size], 1).round(3))
        table.insert(0, "video", rng.choice(videos, number))
        table.insert(1, "second", rng.choice(SECONDS, number))
        if split == "val":
            scores = pd.Series(rng.uniform(0.5, 1, number).round(3))
            found = pd.concat([table, scores], axis=1)
            found.to_csv(root / "val_proposals.csv", header=False, index=False)
        own = table.loc[table.index.repeat(rng.integers(1, 5, number))].reset_index()
        own["action"], own["person"] = rng.integers(1, ACTIONS + 1, len(own)), own["index"]
        own.drop(columns="index").to_csv(root / f"ava_{split}_v2.2.csv", header=False, index=False)


def store_of(root: Path, listing: Any) -> FrameStore:
    """A store of all but the frames."""
    rows = [
        {
            **{"id": item.path[:-4], "path": item.path, "label": "", "split": item.split},
            **{"status": "ok", "reason": "", "detail": "", "frames": 27_000, "fps": 30.0},
            **{"width": 454, "height": 256, "sha256": "", "source_bytes": 1},
            **{"shard": 0, "offset": 0, "nbytes": 1},
        }
        for item in listing.items
    ]
    kept, bad = listing.boxes.in_store(rows)
    assert not bad
    root.mkdir()
    (root / "boxes.parquet").write_bytes(kept.to_bytes())
    write_manifest(root, rows, listing.classes, task="detection")
    return FrameStore(root)


def asked(clips: KeyFrames, sampling: SamplingConfig, samples: int) -> None:
    for i in np.random.default_rng(0).integers(0, len(clips), samples).tolist():
        clips.around(i, sampling)
        clips.boxes_of(i)
        clips.target(i)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, default=230_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sampling = SamplingConfig(strategy="dense", num_frames=8, stride=8)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ava"
        root.mkdir()
        timed(
            "annotations are written",
            lambda: write_annotations(root, given.boxes, np.random.default_rng(0)),
        )
        config = DataConfig.model_validate(
            {"root": str(root), "task": "detection", "layout": "ava", "detection": {"start_s": 900}}
        )
        listing = timed("layout", lambda: list_items(config))
        store = timed("table of boxes, store", lambda: store_of(Path(folder) / "store", listing))
        clips: dict[str, Any] = {}
        for split in VIDEOS:
            own: Any = timed(
                f"key frames of {split}",
                partial(open_clips, store, split, listing.classes),
            )
            print(
                f"{'':21}{len(own)} key frames, {len(own.truth)} boxes, at most {own.most} in one"
            )
            clips[split] = own
        timed(
            "10,000 samples' frames, boxes and targets",
            lambda: asked(clips["train"], sampling, 10_000),
        )
        val = clips["val"]
        shape = (len(val), val.most, len(listing.classes))
        p = timed(
            "random probabilities",
            lambda: torch.rand(shape, generator=torch.Generator().manual_seed(0)),
        )
        found = Predictions(val.ids, p, p, p[:, 0, :1] > 2, clips=val)
        numbers = timed(
            "frame mAP by ground truth and by proposals, and the rest",
            lambda: TASKS["detection"].metrics(found, listing.classes),
        )
        print({name: round(value, 4) for name, value in numbers.items()})


if __name__ == "__main__":
    main()
