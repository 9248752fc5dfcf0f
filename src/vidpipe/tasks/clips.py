"""The clips of a store, and samples of them, as the store's task has them."""

from __future__ import annotations

from collections.abc import Sequence

from vidpipe.data.config import SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.tasks.detection.dataset import BoxTrainSet, BoxViews, KeyFrames
from vidpipe.video.store import FrameStore


def open_clips(
    store: FrameStore, split: str, classes: Sequence[str], subset: SubsetConfig | None = None
) -> Clips:
    """Those of one split; of task detection its key frames."""
    kind = KeyFrames if store.task == "detection" else Clips
    return kind(store, split, classes, subset)


def open_train_set(
    clips: Clips, sampling: SamplingConfig, transform: TransformConfig, seed: int
) -> TrainSet:
    if isinstance(clips, KeyFrames):
        return BoxTrainSet(clips, sampling, transform, seed)
    return TrainSet(clips, sampling, transform, seed)


def open_views(
    clips: Clips,
    sampling: SamplingConfig,
    transform: TransformConfig,
    temporal_clips: int = 1,
    spatial_crops: int = 1,
) -> ViewSet:
    """Raises VidpipeError for several views of a key frame, which has one: the whole frame."""
    if not isinstance(clips, KeyFrames):
        return ViewSet(clips, sampling, transform, temporal_clips, spatial_crops)
    for name, value in (("temporal_clips", temporal_clips), ("spatial_crops", spatial_crops)):
        if value > 1:
            raise VidpipeError(
                f"evaluate.{name}: {value}; task detection sees the whole frame once: 1"
            )
    return BoxViews(clips, sampling, transform)
