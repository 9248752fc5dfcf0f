"""What the demo page says of a video over time: when each action happens, and what each person does.

The page's component gets plain values (`value`); templates/film.js draws them over and under the video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.tools.predict import Job, Opened
from pipeline.tools.predict_people import Who, people_of
from pipeline.tools.predict_timeline import Timeline
from vidpipe.inference.film import Film, Part, Plan, scenes
from vidpipe.inference.key_frames import STEP_S, Keys
from vidpipe.inference.segments import Request, Segment
from vidpipe.tasks.detection.people import People
from vidpipe.tasks.timeline import Stretch
from vidpipe.trained.predictor import Predictor
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.trained.windows import stretches
from vidpipe.video.guard import Guards
from vidpipe.video.quarantine import QuarantineError

TEMPLATES = Path(__file__).parents[1] / "infra" / "templates"
WINDOW_S = 2.0
"""Of a model that knows none."""
OF_A_BOX, LIKELY = 3, 0.5
"""Actions of a person that are written at the box: at most so many, each at least so probable; or the
likeliest one."""
COLOURS = (
    *("#E69F00", "#56B4E9", "#2FBF8F", "#F0E442", "#5B8DEF", "#E8743B", "#D98CB9", "#9AA5B1"),
    *("#B5D334", "#B39DDB", "#8D9E5F", "#4DD0E1"),
)
"""Told apart by the colour-blind as far as there are eight (Okabe and Ito, lightened for black text)."""


@dataclass
class Seen:
    """What is known of an uploaded video so far."""

    name: str
    whole: Segment | None = None
    film: Film | None = None
    windows: dict[str, list[tuple[float, float, Tensor]]] = field(default_factory=dict)
    """Of each model: start, end and (C,) probabilities."""
    keys: list[tuple[float, Tensor, dict[str, Tensor]]] = field(default_factory=list)
    """Second of the film, (K, 4) boxes and each model's (K, C) probabilities."""


@dataclass(frozen=True)
class Watching:
    """Opened models and what they look at: the whole of a video and windows, or people in boxes."""

    opened: Opened
    folder: Path
    """For copies of videos that browsers play."""
    smooth: int = 1
    """Windows that are averaged."""
    people: People | None = None
    keys: Keys | None = None

    @property
    def predictors(self) -> dict[float, Predictor]:
        """By the length of their windows, which models that learned on spans know themselves."""
        found: dict[float, dict[str, TrainedModel]] = {}
        predictor, job = self.opened.predictor, self.opened.job
        for name, trained in predictor.models.items():
            window = job.window_s or trained.window_s or WINDOW_S
            found.setdefault(window, {})[name] = trained
        return {window: replace(predictor, models=models) for window, models in found.items()}

    def guards(self) -> Guards[str, Any]:
        """The process that decodes; a context manager."""
        opened = self.opened
        request = Request(opened.extract, opened.predictor.samplings)
        plan = Plan(self.folder, request, whole=self.people is None, keys=self.keys)
        if self.people is None:
            windows = tuple(
                Request(opened.extract, p.samplings, window_s=w, step_s=opened.job.step_s)
                for w, p in self.predictors.items()
            )
            plan = replace(plan, windows=windows)
        return Guards(partial(scenes, plan=plan), opened.extract.timeout_s)

    def look(self, path: Path, guards: Guards[str, Any]) -> Iterator[Seen]:
        """The same object each time that it knows more. Raises QuarantineError."""
        seen = Seen(path.name)
        predictors = list(self.predictors.values()) if self.people is None else []
        for event in guards.run([str(path)]):
            found = event.result
            if isinstance(found, QuarantineError):
                raise found
            if isinstance(found, Segment):
                seen.whole = found
            elif isinstance(found, Film):
                seen.film = found
            elif isinstance(found, Part) and self.people is None:
                segment = found.segment
                for model, p in predictors[found.number]([segment])[0].items():
                    known = seen.windows.setdefault(model, [])
                    known.append((segment.start_s, segment.end_s, p))
            elif isinstance(found, Part):
                self._ask_people(seen, found.segment)
            else:
                continue
            yield seen
        if seen.film is None:
            raise QuarantineError("undecodable", "no frame could be decoded")

    def _ask_people(self, seen: Seen, segment: Segment) -> None:
        assert self.people is not None
        assert self.keys is not None
        key = segment.frames[len(segment.frames) // 2]
        boxes, _ = self.people(seen.name, segment.start_s, key)
        models = self.opened.predictor.models
        found = {
            name: self.opened.predictor.of_boxes(segment, trained, boxes)
            if len(boxes)
            else torch.empty(0, len(trained.classes))
            for name, trained in models.items()
        }
        seen.keys.append((segment.start_s - self.keys.start_s, boxes, found))

    def value(self, seen: Seen, model: str) -> dict[str, Any] | None:
        """Of the page's component; None before there is a film."""
        if seen.film is None:
            return None
        trained, film = self.opened.predictor.models[model], seen.film
        people: list[dict[str, Any]] = []
        if self.people is None:
            windows = seen.windows.get(model, [])
            found = self._stretches(model, windows, film.seconds)
            note = _of_windows(windows)
        else:
            spans = spans_of([second for second, _, _ in seen.keys], film.seconds)
            found = _acts(seen, model, trained.classes, spans)
            people = _people(seen, model, trained.classes, spans)
            count = sum(len(boxes) for _, boxes, _ in seen.keys)
            note = f"{count} people in {len(seen.keys)} key frames"
        return {
            "url": f"/gradio_api/file={film.path}",
            "seconds": film.seconds,
            "rows": _bands(found, trained.classes),
            "people": people,
            "note": note,
        }

    def _stretches(
        self, model: str, windows: Sequence[tuple[float, float, Tensor]], seconds: float
    ) -> list[Stretch]:
        if not windows:
            return []
        step = windows[1][0] - windows[0][0] if len(windows) > 1 else 0.0
        trained = self.opened.predictor.models[model]
        found = stretches(trained, windows, Timeline(self.smooth).merging(step))
        # The copy's last frame may end a little before the models' own.
        return [s._replace(end_s=min(s.end_s, seconds)) for s in found if s.start_s < seconds]


def watching(job: Job, who: Who, folder: Path, smooth: int = 1) -> Watching:
    """The models of `job`, opened.

    Raises VidpipeError for what does not fit together: models of people in boxes beside models of
    clips, people without boxes, boxes without people.
    """
    opened = replace(replace(job, step_s=None).open(), job=job)
    models = opened.predictor.models.values()
    if who.given or any("boxes" in trained.task.inputs for trained in models):
        people, keys = people_of(opened, who)
        return Watching(opened, folder, people=people, keys=keys)
    for trained in models:
        replace(job, window_s=job.window_s or trained.window_s or WINDOW_S).check()
    return Watching(opened, folder, smooth)


def _of_windows(windows: Sequence[tuple[float, float, Tensor]]) -> str:
    if not windows:
        return ""
    start, end, _ = windows[0]
    if len(windows) == 1:
        return f"1 window of {end - start:.3g} s"
    return f"{len(windows)} windows of {end - start:.3g} s, every {windows[1][0] - start:.3g} s"


def colour(number: int) -> str:
    """Of a class."""
    return COLOURS[number % len(COLOURS)]


def _bands(found: Sequence[Stretch], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that there is, in the order of `classes`."""
    return [
        {
            "label": name,
            "colour": colour(number),
            "bands": [[s.start_s, s.end_s, s.score] for s in found if s.label == name],
        }
        for number, name in enumerate(classes)
        if any(s.label == name for s in found)
    ]


def spans_of(seconds: Sequence[float], end: float) -> list[tuple[float, float]]:
    """Around each rising key second, half way to its neighbours and at most half of STEP_S, or of the
    usual distance where that is less.

    Example:
        >>> spans_of([1, 2, 9], 9.2)
        [(0.5, 1.5), (1.5, 2.5), (8.5, 9.2)]
    """
    gaps = np.diff(seconds)
    reach = min(STEP_S, float(np.median(gaps)) if len(gaps) else STEP_S) / 2
    found = []
    for i, at in enumerate(seconds):
        before = at - reach if i == 0 else max(at - reach, (seconds[i - 1] + at) / 2)
        after = at + reach if i + 1 == len(seconds) else min(at + reach, (at + seconds[i + 1]) / 2)
        found.append((max(0.0, float(before)), min(float(end), float(after))))
    return found


def acts_of(probabilities: Tensor) -> list[int]:
    """Of a box (C,): the classes that are written at it, the likeliest first."""
    best = probabilities.topk(min(OF_A_BOX, len(probabilities))).indices.tolist()
    return best[:1] + [i for i in best[1:] if float(probabilities[i]) >= LIKELY]


def _people(
    seen: Seen, model: str, classes: Sequence[str], spans: Sequence[tuple[float, float]]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (_, boxes, found), (start, end) in zip(seen.keys, spans, strict=True):
        for box, p in zip(boxes.tolist(), found[model], strict=True):
            acts = acts_of(p)
            text = ", ".join(f"{classes[i]} {float(p[i]):.0%}" for i in acts)
            own = {"box": box, "text": text, "colour": colour(acts[0])}
            rows.append({"number": len(rows), "start": start, "end": end, **own})
    return rows


def _acts(
    seen: Seen, model: str, classes: Sequence[str], spans: Sequence[tuple[float, float]]
) -> list[Stretch]:
    """When somebody does it: key seconds that follow each other are one stretch, of the best score."""
    found: list[Stretch] = []
    open_: dict[int, Stretch] = {}
    for (_, _, probabilities), (start, end) in zip(seen.keys, spans, strict=True):
        best: dict[int, float] = {}
        for p in probabilities[model]:
            for i in acts_of(p):
                best[i] = max(best.get(i, 0.0), float(p[i]))
        for i, score in best.items():
            last = open_.get(i)
            if last is not None and last.end_s == start:
                open_[i] = Stretch(last.start_s, end, classes[i], max(last.score, score))
            else:
                found += [last] if last is not None else []
                open_[i] = Stretch(start, end, classes[i], score)
    return sorted([*found, *open_.values()])


def template() -> dict[str, Any]:
    """Arguments of `gradio.HTML`."""
    names = {"html_template": "html", "css_template": "css", "js_on_load": "js"}
    return {key: (TEMPLATES / f"film.{end}").read_text("utf-8") for key, end in names.items()}
