"""`vidpipe predict` with a model of task detection: what each person in a box does, at key seconds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.tools.predict import Job, Opened, conclude, output_format
from pipeline.tools.prediction_inputs import sources
from pipeline.tools.prediction_writers import as_row, writer
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.inference.key_frames import STEP_S, Keys, key_decoders
from vidpipe.inference.segments import Request, Segment
from vidpipe.inference.stream import Prediction
from vidpipe.tasks.detection.people import People, PersonDetector, Proposals
from vidpipe.video.quarantine import QuarantineError


@dataclass(frozen=True)
class Who:
    """Where the boxes come from: one of the two."""

    proposals: Path | None = None
    detector: str | None = None
    """Weights of a person detector: a file, or hub."""
    detector_model: str = "fasterrcnn_resnet50_fpn_v2"
    min_score: float = 0.8
    start_s: float = 0.0
    """Of the proposals' clock where videos begin: 900 for AVA's cut videos."""

    @property
    def given(self) -> bool:
        return self.proposals is not None or self.detector is not None

    def open(self, device: torch.device) -> People:
        if (self.proposals is None) == (self.detector is None):
            raise VidpipeError(
                "a model of task detection needs boxes; give --proposals FILE or --detector WEIGHTS, "
                "one of them"
            )
        if self.proposals is not None:
            return Proposals(self.proposals, self.min_score)
        assert self.detector is not None
        return PersonDetector(self.detector, self.detector_model, self.min_score, device)


def people_of(opened: Opened, who: Who) -> tuple[People, Keys]:
    """Who is asked for boxes, and at which seconds.

    Raises VidpipeError where models, boxes and the job's options do not fit together.
    """
    job, models = opened.job, opened.predictor.models
    for name, trained in models.items():
        if "boxes" not in trained.task.inputs:
            raise VidpipeError(
                f"{name} is a model of task {trained.task.name}, which has no boxes; only models of "
                "task detection go with --proposals, --detector and with each other"
            )
    if job.window_s is not None or job.temporal_clips > 1 or job.spatial_crops > 1:
        raise VidpipeError("a model of task detection sees the whole frame at key seconds; "
                           "no --window, --temporal-clips, --spatial-crops")  # fmt: skip
    if job.step_s is not None and who.proposals is not None:
        raise ArgumentError("step", f" {job.step_s:g}: --proposals has the seconds itself")
    if job.step_s is not None and not 0 < job.step_s < float("inf"):
        raise ArgumentError("step", f" {job.step_s:g}: expected seconds above 0")
    if len({trained.sampling for trained in models.values()}) > 1:
        raise VidpipeError("models of task detection that sample differently; one at a time")
    people = who.open(opened.predictor.device)
    keys = Keys(step_s=job.step_s or STEP_S)
    if isinstance(people, Proposals):
        keys = Keys(people.seconds, start_s=who.start_s)
    return people, keys


def run(
    job: Job,
    inputs: Sequence[str],
    who: Who,
    *,
    top: int = 5,
    form: str | None = None,
    out: Path | None = None,
) -> None:
    """Write a row for each person of each key second, and one for each input that cannot be read.

    Raises VidpipeError where models or boxes do not fit, or not one input could be predicted.
    """
    form = output_format(form, out)
    opened = replace(replace(job, step_s=None).open(), job=job)  # its step is no window's
    people, keys = people_of(opened, who)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="vidpipe-"))
        request = Request(opened.extract, opened.predictor.samplings, scratch=Path(scratch))
        guards = stack.enter_context(key_decoders(request, keys, job.workers))
        file = stack.enter_context(writer(form, out, opened.predictor.classes, windows=True))
        counts: Counter[str] = Counter()
        for event in guards.run(sources(inputs)):
            if isinstance(event.result, Segment):
                for row in _rows(event.task, event.result, people, opened, top):
                    file.add(row)
            elif isinstance(event.result, QuarantineError):
                detail = " ".join(event.result.detail.split())[:500]
                file.add(
                    as_row(Prediction(event.task, reason=event.result.reason, detail=detail), top)
                )
                counts[event.result.reason] += 1
            else:
                counts["ok"] += 1
    conclude(counts)


def _rows(
    source: str, segment: Segment, people: People, opened: Opened, top: int
) -> Iterator[Mapping[str, Any]]:
    key = segment.frames[len(segment.frames) // 2]
    boxes, scores = people(source, segment.start_s, key)
    if not len(boxes):
        return
    for name, trained in opened.predictor.models.items():
        found = opened.predictor.of_boxes(segment, trained, boxes)
        for box, score, probabilities in zip(boxes.tolist(), scores.tolist(), found, strict=True):
            span = (segment.start_s, segment.end_s)
            said = Prediction(
                source, name, "box", *span, classes=trained.classes, probabilities=probabilities
            )
            yield {**as_row(said, top), "box": box, "box_score": score}
