"""Samples of detection: key frames with their boxes, the frames around them, crops that keep both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.data.layouts.ava_files import (
    Boxes,
    Frame,
    inside,
    read_boxes,
    read_excluded,
    refuse,
)
from vidpipe.data.layouts.common import closest, fail


@dataclass(frozen=True)
class KeyFrame:
    """One second of a video and the people in it.

    Args:
        video: its name, a file's without the suffix.
        second: on the annotation's clock.
        boxes: (K, 4) fp32 x1, y1, x2, y2, fractions of the frame.
        targets: (K, C) fp32 multi-hot; of proposals (K, 0).
        scores: (K,) fp32, of a detector; 1 for ground truth.
    """

    video: str
    second: int
    boxes: Tensor
    targets: Tensor
    scores: Tensor


def ground_truth(
    path: str | Path, label_map: Mapping[int, str], excluded: str | Path | None = None
) -> list[KeyFrame]:
    """Key frames of an AVA annotation; a box with several actions has several rows, and one target.

    Args:
        path: CSV `video, second, x1, y1, x2, y2, action id[, person id]`.
        label_map: id -> name (`read_label_map`); column c of the targets is its c-th lowest id.
        excluded: CSV `video, second` of key frames to leave out.

    Raises:
        VidpipeError: with file, video and second, for an inverted box, one outside the frame, and an id
            that the label map lacks.
    """
    rows = read_boxes(path)
    ids = np.array(sorted(label_map), dtype=np.int64)
    refuse(Path(path), rows, ~np.isin(rows.action, ids), "an id of the label map", action=True)
    left_out = frozenset[Frame]() if excluded is None else read_excluded(excluded)
    boxes = inside(Path(path), rows)
    found = []
    for number, index in _by_frame(rows):
        if rows.frames[number] in left_out:
            continue
        distinct, which = np.unique(boxes[index], axis=0, return_inverse=True)
        targets = np.zeros((len(distinct), len(ids)), dtype=np.float32)
        targets[which.reshape(-1), np.searchsorted(ids, rows.action[index])] = 1
        found.append(_key_frame(rows.frames[number], distinct, targets, np.ones(len(distinct))))
    return found


def proposals(
    path: str | Path, videos: Sequence[str], threshold: float = 0.8, enlarge: float = 0.0
) -> list[KeyFrame]:
    """Key frames with a detector's boxes.

    Args:
        path: CSV `video, second, x1, y1, x2, y2, score`. A pickle is refused.
        videos: names of the videos that there are.
        threshold: least score of a box.
        enlarge: share of its width and height by which a box grows, half on each side.

    Raises:
        VidpipeError: as `ground_truth`, and for a video that there is not.
    """
    path = Path(path)
    rows = read_boxes(path, proposals=True)
    known = frozenset(videos)
    for video, second in rows.frames:
        if video not in known:
            near = closest(video, sorted(known))
            raise fail(f"{path}: {video}, second {second}: no such video{near}")
    boxes = inside(path, rows)
    size = (boxes[:, 2:] - boxes[:, :2]) * (enlarge / 2)
    boxes = np.clip(np.concatenate([boxes[:, :2] - size, boxes[:, 2:] + size], 1), 0, 1)
    found = []
    for number, index in _by_frame(rows):
        kept = index[rows.score[index] >= threshold]
        targets = np.zeros((len(kept), 0), dtype=np.float32)
        found.append(_key_frame(rows.frames[number], boxes[kept], targets, rows.score[kept]))
    return found


def frames_around(
    second: float, fps: float, length: int, num_frames: int, stride: int, start: float = 0.0
) -> NDArray[np.int64]:
    """(T,) indices of frames around a key second, `stride` apart, clamped to the video's ends.

    The key frame is frame T // 2 of the clip, as in AlphAction's, SlowFast's and MMAction2's code.

    Args:
        second: on the annotation's clock.
        fps: frames a second of the video.
        length: its frames.
        num_frames: T.
        stride: between frames of the clip.
        start: second of the annotation's clock at which the video begins (900 for AVA's cut files).

    Raises:
        VidpipeError: for a second that the video does not have.
    """
    key = round((second - start) * fps)
    if not 0 <= key <= length:  # the last second's own frame may be the one behind the end
        end = start + length / fps
        raise fail(f"second {second:g}: the video has {start:g} to {end:g}")
    indices = key + (np.arange(num_frames) - num_frames // 2) * stride
    return np.clip(indices, 0, length - 1).astype(np.int64)


def whole_frame(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, h, w): the whole frame, so that boxes stay the fractions they are."""
    return F.resize(frames, list(size), antialias=True)


@dataclass(frozen=True)
class BoxTransform:
    """A training crop of the clip that takes its boxes along: scale jitter, crop, flip.

    Draws from torch's global generator: seed it before a call. A crop has the aspect ratio of the frame
    and is squeezed into `size`, as `whole_frame` is.

    Args:
        size: (height, width) of the input.
        scale: least and greatest share of the frame's sides.
        flip: whether half of the clips are mirrored.
        visible: least share of a box's area within the crop; boxes with less are dropped.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = True
    visible: float = 0.3

    def __call__(self, frames: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        """(T, 3, H, W) uint8 and (K, 4) fractions -> (T, 3, h, w), (L, 4), (L,) indices of those that
        are
        left, and whether it was mirrored."""
        height, width = frames.shape[-2:]
        share = self.scale[0] + (self.scale[1] - self.scale[0]) * torch.rand(()).item()
        rows, columns = (max(1, round(side * share)) for side in (height, width))
        top = int(torch.randint(0, height - rows + 1, ()))
        left = int(torch.randint(0, width - columns + 1, ()))
        video = F.crop(frames, top, left, rows, columns)
        video = F.resize(video, list(self.size), antialias=True)
        whole = torch.tensor([width, height, width, height])
        origin = torch.tensor([left, top, left, top])
        moved = (boxes * whole - origin) / torch.tensor([columns, rows, columns, rows])
        cut = moved.clamp(0, 1)
        kept = torch.nonzero(_area(cut) >= self.visible * _area(moved)).flatten()
        cut = cut[kept]
        flipped = self.flip and torch.rand(()).item() < 0.5
        if flipped:
            video = F.horizontal_flip(video)
            cut = torch.stack([1 - cut[:, 2], cut[:, 1], 1 - cut[:, 0], cut[:, 3]], 1)
        return video, cut, kept, flipped


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _by_frame(rows: Boxes) -> list[tuple[int, NDArray[np.int64]]]:
    """(number of the key frame, indices of its rows in the file's order), in the file's order."""
    order = np.argsort(rows.frame, kind="stable")
    starts = np.searchsorted(rows.frame[order], np.arange(1, len(rows.frames)))
    return list(enumerate(np.split(order, starts))) if len(rows) else []


def _key_frame(
    frame: Frame,
    boxes: NDArray[np.float64],
    targets: NDArray[np.float32],
    scores: NDArray[np.float64],
) -> KeyFrame:
    as_fp32 = (torch.from_numpy(a.astype(np.float32)) for a in (boxes, targets, scores))
    return KeyFrame(*frame, *as_fp32)
