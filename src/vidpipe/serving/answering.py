"""From a video and a query to an answer: what is decoded, what the model computes, what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidpipe.data.layouts.common import stem
from vidpipe.inference.given import Rules, Wanted
from vidpipe.inference.key_frames import STEP_S, Keys
from vidpipe.inference.segments import Request, Segment
from vidpipe.serving.answers import Found, boxes_of, labels_of
from vidpipe.serving.queries import Answer, Query, merging_of, windows_of
from vidpipe.tasks.detection.people import PersonDetector
from vidpipe.trained.predictor import predict_extract
from vidpipe.trained.shelf import Shelved
from vidpipe.trained.windows import stretches


@dataclass(frozen=True)
class Item:
    """A segment that waits for its model."""

    model: Shelved
    segment: Segment
    source: str
    boxes: Tensor | None = None
    """(K, 4); of a model of task detection None: whom the detector finds."""


def wanted_of(
    model: Shelved, source: str, query: Query, kind: Answer, rules: Rules, scratch: Path
) -> Wanted:
    """What of the video at a path or URL is decoded for the answer. Videos of URLs lie in `scratch`."""
    extract = predict_extract(model.frames, **rules.limits)
    window_s, step_s, keys = None, None, None
    if kind == "timeline":
        window_s, step_s = windows_of(query, model.trained)
    elif kind == "boxes":
        keys = Keys(step_s=query.step or STEP_S)
        if query.boxes is not None:
            keys = Keys({stem(source): sorted({box[0] for box in query.boxes})})
    request = Request(
        extract,
        model.predictor.samplings,
        window_s=window_s,
        step_s=step_s,
        scratch=scratch,
        only_public=not rules.private_urls,
    )
    return Wanted(source, request, keys)


def compute(items: Sequence[Item], detector: PersonDetector | None) -> list[Found | Exception]:
    """Of each item, what was found or why nothing was; those of one model go through it together."""
    results: dict[int, Found | Exception] = {}
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(id(item.model), []).append(number)
    for numbers in groups.values():
        own = [items[number] for number in numbers]
        try:
            found: Sequence[Found | Exception] = _of_one_model(own, detector)
        except Exception as error:  # of these requests, not of the others in the batch
            found = [error] * len(own)
        results.update(zip(numbers, found, strict=True))
    return [results[number] for number in range(len(items))]


def _of_one_model(items: Sequence[Item], detector: PersonDetector | None) -> list[Found]:
    model = items[0].model
    if "boxes" in model.trained.task.inputs:
        return [_of_boxes(item, detector) for item in items]
    rows = model.predictor([item.segment for item in items])
    return [(None, None, row[model.name]) for row in rows]


def _of_boxes(item: Item, detector: PersonDetector | None) -> Found:
    segment, boxes = item.segment, item.boxes
    scores = None
    if boxes is None:
        assert detector is not None  # `answer_of` has seen to it
        key = segment.frames[len(segment.frames) // 2]
        boxes, scores = detector(item.source, segment.start_s, key)
    classes = len(item.model.trained.classes)
    if not len(boxes):
        return boxes, scores, torch.empty(0, classes)
    return boxes, scores, item.model.predictor.of_boxes(segment, item.model.trained, boxes)


def body_of(
    model: Shelved, query: Query, kind: Answer, found: Sequence[tuple[float, float, Found]]
) -> Mapping[str, Any]:
    """The answer from what was `found` of each segment, with its start and end in seconds."""
    found = sorted(found, key=lambda each: each[:2])
    if kind == "labels":
        ((_, end_s, (_, _, probabilities)),) = found
        return {
            "seconds": round(end_s, 3),
            "labels": labels_of(model, probabilities, query.top),
        }
    if kind == "timeline":
        windows = [(start_s, end_s, p) for start_s, end_s, (_, _, p) in found]
        _, step_s = windows_of(query, model.trained)
        merged = stretches(model.trained, windows, merging_of(query, step_s))
        return {
            "seconds": round(windows[-1][1], 3),
            "timeline": [
                {"start": round(s.start_s, 3), "end": round(s.end_s, 3)}
                | {"label": s.label, "score": s.score}
                for s in merged
            ],
        }
    rows = (boxes_of(model, second, people, query.top) for second, _, people in found)
    return {"boxes": [row for each in rows for row in each]}
