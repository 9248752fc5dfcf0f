"""What a request asks of a model beside the video: query parameters, keys of JSON, params of MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vidpipe.config.messages import explain
from vidpipe.inference.given import Refused
from vidpipe.tasks.timeline import Merging
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.trained.windows import STEPS

Answer = Literal["labels", "timeline", "boxes"]
MOST_BOXES = 1000
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Box = tuple[
    Annotated[float, Field(ge=0, le=86_400)], Fraction, Fraction, Fraction, Fraction
]  # second, x1, y1, x2, y2


class Query(BaseModel):
    """The parameters of `POST /predict`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    top: int = Field(5, ge=1, le=10_000, description="labels to name")
    answer: Answer | None = Field(
        None, description="labels, timeline or boxes; default: by the model's task"
    )
    window: Seconds | None = Field(
        None, description="timeline: seconds; default: the model's, where it learned on spans"
    )
    step: Seconds | None = Field(
        None,
        description="seconds between windows or key frames; default: a quarter of window, or 1",
    )
    smooth: int = Field(1, ge=1, le=1000, description="timeline: windows to average")
    threshold: Fraction | None = Field(None, description="timeline: least probability")
    min_length: float = Field(0, ge=0, le=86_400, description="timeline: seconds")
    boxes: tuple[Box, ...] | None = Field(
        None,
        max_length=MOST_BOXES,
        description="boxes: [[second, x1, y1, x2, y2], ...], fractions of the frame; default: the "
        "server's person detector",
    )

    @field_validator("boxes", mode="before")
    @classmethod
    def _of_a_url(cls, value: Any) -> Any:
        """In a query string, boxes are JSON."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected JSON: [[second, x1, y1, x2, y2], ...]") from None

    @field_validator("boxes")
    @classmethod
    def _upright(cls, boxes: tuple[Box, ...] | None) -> tuple[Box, ...] | None:
        for box in boxes or ():
            if not (box[1] < box[3] and box[2] < box[4]):
                raise ValueError(f"{list(box)}: expected second, x1 < x2, y1 < y2")
        return boxes


def read_query(given: Mapping[str, Any]) -> Query:
    """Raises Refused (422), naming the parameter, what was expected and the nearest name."""
    try:
        return Query.model_validate(dict(given))
    except ValidationError as error:
        raise _bad(explain(error, Query)[:600]) from None


def answer_of(query: Query, name: str, trained: TrainedModel, *, detector: bool) -> Answer:
    """What is answered: as asked, or by the task. Raises Refused (422) where the model cannot."""
    with_boxes = "boxes" in trained.task.inputs
    usual: Answer = "boxes" if with_boxes else "timeline" if trained.window_s else "labels"
    chosen = query.answer or usual
    if with_boxes != (chosen == "boxes"):
        raise _bad(
            f"answer: {chosen}, but {name} is a model of task {trained.task.name}; expected {usual}"
        )
    if query.boxes is not None and chosen != "boxes":
        raise _bad(f"boxes: {name} takes none")
    if chosen == "boxes" and query.boxes is None and not detector:
        raise _bad(
            f"boxes: {name} needs [[second, x1, y1, x2, y2], ...], since the server has no detector"
        )
    if chosen == "timeline":
        window = query.window or trained.window_s
        if window is None:
            raise _bad(f"window: seconds, since {name} was not trained on spans of videos")
        if (query.step or 0) > window:
            raise _bad(f"step: {query.step:g}, more than window {window:g}, would skip a part")
    return chosen


def windows_of(query: Query, trained: TrainedModel) -> tuple[float, float]:
    """Seconds of a window, and between their starts."""
    window = query.window or trained.window_s
    assert window is not None  # `answer_of` has seen to it
    return window, query.step or window / STEPS


def merging_of(query: Query, step_s: float) -> Merging:
    return Merging((query.smooth - 1) * step_s, query.threshold, query.min_length)


def _bad(message: str) -> Refused:
    return Refused(422, "bad_parameter", message)
