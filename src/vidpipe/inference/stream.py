"""Sources in, predictions out, one after the other: nothing is kept but sums of open videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from vidpipe.inference.segments import Segment
from vidpipe.tasks.base import said
from vidpipe.video.guard import Event, Guards


class Predictor(Protocol):
    """What classifies segments, such as `trained.predictor.Predictor`: models by name."""

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The class names of each model."""

    @property
    def thresholds(self) -> Mapping[str, Sequence[float] | None]:
        """Of each model, (C,) where a video may have several of its classes or none."""

    def __call__(self, segments: Sequence[Segment]) -> list[dict[str, Tensor]]:
        """For each segment, each model's (C,) probabilities."""


@dataclass(frozen=True)
class Prediction:
    """Of one model for one video or segment; or, with a reason, why there is none for this source."""

    path: str
    model: str = ""
    part: Literal["video", "segment", "box"] = "video"
    start_s: float = 0.0
    end_s: float = 0.0
    reason: str = ""
    """One of `video.quarantine.REASONS`; empty where the source was read."""
    detail: str = ""
    classes: Sequence[str] = ()
    probabilities: Tensor | None = None
    """(C,)"""
    thresholds: Sequence[float] | None = None
    """(C,) where a video may have several of the classes or none."""

    def said(self, top: int) -> list[int]:
        """Indices of the classes that the model says, the likeliest first, at most `top`."""
        if self.probabilities is None:
            return []
        return said(self.probabilities, self.thresholds, top)


@dataclass
class _Sums:
    """Of the segments of a video so far, for their mean."""

    count: int = 0
    end_s: float = 0.0
    probabilities: dict[str, Tensor] = field(default_factory=dict)


def predictions(
    sources: Iterable[str],
    guards: Guards[str, Segment],
    predictor: Predictor,
    *,
    windows: bool,
    batch: int = 1,
) -> Iterator[Prediction]:
    """Predictions as they come. With `windows`, each segment's, then the video's: their mean.

    Up to `batch` segments, of any videos, go through the models together. A file that turns out to
    be damaged after some of its segments has those, a row with the reason, and no mean.
    """
    open_videos: dict[int, _Sums] = {}
    waiting: list[Event[str, Segment]] = []
    ready = 0
    for event in guards.run(sources):
        waiting.append(event)
        ready += isinstance(event.result, Segment)
        # Ends have nothing to wait for where no segment is before them.
        if ready >= batch or ready == 0:
            yield from _predict(waiting, predictor, open_videos, windows)
            waiting, ready = [], 0
    yield from _predict(waiting, predictor, open_videos, windows)


def _predict(
    events: Sequence[Event[str, Segment]],
    predictor: Predictor,
    videos: dict[int, _Sums],
    windows: bool,
) -> Iterator[Prediction]:
    segments = [event.result for event in events if isinstance(event.result, Segment)]
    results = iter(predictor(segments) if segments else [])
    for event in events:
        sums = videos.setdefault(event.number, _Sums())
        if isinstance(event.result, Segment):
            found = next(results)
            sums.count += 1
            sums.end_s = event.result.end_s
            for model, p in found.items():
                sums.probabilities[model] = sums.probabilities.get(model, 0) + p
            if windows:
                span = (event.result.start_s, event.result.end_s)
                yield from _rows(event.task, found, predictor, "segment", *span)
            continue
        del videos[event.number]
        if event.result is None:
            means = {model: p / sums.count for model, p in sums.probabilities.items()}
            yield from _rows(event.task, means, predictor, "video", 0.0, sums.end_s)
        else:
            detail = " ".join(event.result.detail.split())[:500]
            yield Prediction(event.task, reason=event.result.reason, detail=detail)


def _rows(
    source: str,
    found: dict[str, Tensor],
    predictor: Predictor,
    part: Literal["video", "segment"],
    start_s: float,
    end_s: float,
) -> Iterator[Prediction]:
    for model, probabilities in found.items():
        yield Prediction(
            *(source, model, part, start_s, end_s),
            classes=predictor.classes[model],
            probabilities=probabilities,
            thresholds=predictor.thresholds[model],
        )
