"""Key frames of a store for training and evaluation: the frames around them, and their boxes.

A sample has `boxes` (M, 4) and `label` (M, C), M those of the key frame that has most, so that any of
them make a batch. What is no ground truth (a proposal, or filled up) has the label UNKNOWN in every
class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.data.boxes import PROPOSAL, BoxRows, read_box_rows
from vidpipe.data.config import SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.tasks.detection.samples import BoxTransform, frames_around, whole_frame
from vidpipe.video.store import FrameStore

UNKNOWN = -1.0


class KeyFrames(Clips):
    """The key frames of one split of a store. For training those with ground truth; for validation also
    those in which a detector found someone.

    Attributes:
        rows: (N,) row of the store of each key frame's video.
        seconds: (N,) on the annotations' clock.
        starts: (N + 1,) into `boxes` (K, 4) fp32, `targets` (K, C) uint8 and `truth` (K,) bool.
        labels: (N, C) uint8, 1 where somebody does it.
        annotated: the rows of the annotation, for the official metric; `video` indexes its `videos`.
    """

    def __init__(
        self,
        store: FrameStore,
        split: str,
        classes: Sequence[str],
        subset: SubsetConfig | None = None,
    ) -> None:
        self.store = store
        self.classes = tuple(classes)
        if subset is not None and (subset.fraction or subset.per_class):
            raise VidpipeError(
                "subset: key frames of task detection are not reduced; set it to null"
            )
        rows = read_box_rows(store.root)
        place = {id_: row for row, id_ in enumerate(store.rows.id.tolist())}
        of_split = (store.rows.split == split).to_numpy()
        row_of = np.array([place.get(video, -1) for video in rows.videos], dtype=np.int64)
        inside = (row_of >= 0) & of_split[row_of]
        truth = rows.action != PROPOSAL
        wanted = inside[rows.video] & (
            truth | ((split == "val") & (rows.score >= rows.config.min_score))
        )
        self.annotated = own = rows.take(wanted)
        if len(own) == 0:
            raise VidpipeError(f"{store.root}: no key frame in split {split!r}")
        self._group(own)
        frames, self.rows = self._frames, row_of[own.video[self._frames]]
        self.seconds = own.second[frames]
        self.shards = store.rows["shard"].to_numpy(dtype=np.int64)[self.rows]
        counts = np.diff(self.starts)
        self.most = int(counts.max())
        self.boxes_per_clip = float(self.truth.sum()) / len(counts)
        self.labels = np.zeros((len(counts), len(classes)), np.uint8)
        np.maximum.at(self.labels, np.repeat(np.arange(len(counts)), counts), self.targets)
        ids = store.rows.id.to_numpy()[self.rows]
        names = [f"{id_}@{second}" for id_, second in zip(ids, self.seconds.tolist(), strict=True)]
        self._ids = pa.array(names, pa.large_string())
        self._fps = store.rows.fps.to_numpy()

    def _group(self, own: BoxRows) -> None:
        """Rows of one box become one: key frames by video and second, in each the boxes in order."""
        is_truth = own.action != PROPOSAL
        edges = [np.ascontiguousarray(column) for column in own.boxes.T]
        order = np.lexsort((*edges[::-1], ~is_truth, own.second, own.video))
        video, second, boxes, truth = (
            values[order] for values in (own.video, own.second, own.boxes, is_truth)
        )
        new_frame = np.diff(video, prepend=-1).astype(bool) | np.diff(
            second, prepend=-(2**41)
        ).astype(bool)
        new_box = (
            new_frame | np.r_[True, (boxes[1:] != boxes[:-1]).any(1) | (truth[1:] != truth[:-1])]
        )
        number = np.cumsum(new_box) - 1
        first = np.flatnonzero(new_box)
        self.starts = np.r_[number[new_frame], len(first)].astype(np.int64)
        self._frames = order[new_frame]
        self.truth = truth[first]
        self.targets = np.zeros((len(first), len(self.classes)), np.uint8)
        action = own.action[order]
        self.targets[number[truth], action[truth]] = 1
        self.raw = boxes[first]
        """(K, 4) as in the files: what predictions are written with."""
        grow = np.where(self.truth, 0.0, own.config.enlarge / 2)[:, None]
        size = (self.raw[:, 2:] - self.raw[:, :2]) * grow
        grown = np.concatenate([self.raw[:, :2] - size, self.raw[:, 2:] + size], 1)
        self.boxes = np.clip(grown, 0, 1).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def target(self, i: int) -> Tensor:
        """(M, C)"""
        begin, end = self.starts[i : i + 2]
        found = torch.full((self.most, len(self.classes)), UNKNOWN)
        own = torch.from_numpy(self.targets[begin:end].astype(np.float32))
        own[~torch.from_numpy(self.truth[begin:end])] = UNKNOWN
        found[: end - begin] = own
        return found

    def boxes_of(self, i: int) -> Tensor:
        """(M, 4); those filled up are empty."""
        begin, end = self.starts[i : i + 2]
        found = torch.zeros(self.most, 4)
        found[: end - begin] = torch.from_numpy(self.boxes[begin:end])
        return found

    def around(self, i: int, sampling: SamplingConfig) -> NDArray[np.int64]:
        """(T,) indices of its frames."""
        fps, length = float(self._fps[self.rows[i]]), self.num_frames(i)
        start = self.annotated.config.start_s
        second = float(self.seconds[i])
        return frames_around(second, fps, length, sampling.num_frames, sampling.stride, start)

    @property
    def filled(self) -> NDArray[np.bool_]:
        """(N, M) which of the padded boxes there are."""
        return np.arange(self.most) < np.diff(self.starts)[:, None]


class BoxTrainSet(TrainSet):
    """Crops that take their boxes along; a box of which too little is left has the label UNKNOWN."""

    def __init__(
        self, clips: KeyFrames, sampling: SamplingConfig, transform: TransformConfig, seed: int
    ) -> None:
        super().__init__(clips, sampling, transform, seed)
        self.frames = clips
        self.box_transform = box_transform(transform)

    def _sample(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        clips = self.frames
        frames = clips.read(i, clips.around(i, self.sampling).tolist())
        begin, end = clips.starts[i : i + 2]
        own = torch.from_numpy(clips.boxes[begin:end])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            video, boxes, kept, flipped = self.box_transform(frames, own)
        label, place = torch.full((clips.most, len(clips.classes)), UNKNOWN), clips.boxes_of(i) * 0
        targets = torch.from_numpy(clips.targets[begin:end].astype(np.float32))[kept]
        label[: len(kept)] = targets[:, self.mirrored] if flipped else targets
        place[: len(kept)] = boxes
        return {"video": video, "boxes": place, "label": label, "index": i}


class BoxViews(ViewSet):
    """The whole frame, squeezed into the input where their shapes differ: boxes are fractions of it."""

    def __init__(
        self, clips: KeyFrames, sampling: SamplingConfig, transform: TransformConfig
    ) -> None:
        super().__init__(clips, sampling, transform)
        self.frames = clips

    def __getitem__(self, i: int) -> dict[str, Any]:
        clips = self.frames
        frames = clips.read(i, clips.around(i, self.sampling).tolist())
        video = whole_frame(frames, self.form.sides)[None]
        boxes, label = clips.boxes_of(i), clips.target(i)
        return {"video": video, "boxes": boxes, "label": label, "index": i}


def box_transform(config: TransformConfig) -> BoxTransform:
    """What of `transform` goes with boxes. Raises VidpipeError for what does not."""
    height, width = InputForm.of(config).sides
    unused = {
        "rand_augment": config.rand_augment is not None,
        "color_jitter": config.color_jitter is not None,
        "erase_probability": config.erase_probability > 0,
        "mixup_alpha": config.mixup_alpha > 0,
        "cutmix_alpha": config.cutmix_alpha > 0,
        "crop": config.crop == "random",
    }
    for name, used in unused.items():
        if used:
            raise VidpipeError(
                f"transform.{name}: not for task detection, whose crops take boxes along; expected crop "
                "random_resized, short_side_jitter or center, flip, and no more"
            )
    scale = {
        "random_resized": tuple(math.sqrt(share) for share in config.scale),
        "center": (1.0, 1.0),
    }.get(config.crop)
    if scale is None and config.short_side is not None:
        low, high = config.short_side
        scale = min(height, width) / high, min(height, width) / low
    assert scale is not None
    return BoxTransform((height, width), (scale[0], scale[1]), config.flip)
