"""`vidpipe predict`: trained models on raw videos, here or as a Ray Data job."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch

from pipeline.infra.console import console
from pipeline.tools.prediction_inputs import sources
from pipeline.tools.prediction_writers import SCHEMA, Writer, as_row, writer
from vidpipe.device import Precision, UseGpu, choose_device
from vidpipe.errors import VidpipeError
from vidpipe.inference.segments import Request, Segment, Work, decoders, segments
from vidpipe.inference.stream import Prediction, predictions
from vidpipe.params import load_params
from vidpipe.trained.card import FRAMES
from vidpipe.trained.predictor import Predictor, frames_of, open_models, predict_extract
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.config import ExtractConfig
from vidpipe.video.guard import Guards

Rows = Generator[dict[str, Any], None, None]
FORMATS = ("table", "jsonl", "parquet")
GPU_BATCH = 8
"""Segments that go through a GPU together; a CPU gains nothing by more than one."""


@dataclass(frozen=True)
class Job:
    """What to predict with, and how: plain values, for workers to open the models themselves."""

    folders: tuple[Path, ...]
    weights: str | None = None
    temporal_clips: int = 1
    spatial_crops: int = 1
    window_s: float | None = None
    step_s: float | None = None
    params: Path | None = None
    workers: int = 2
    timeout_s: float = 300
    max_mb: float = 4096
    schema: ClassVar[pa.Schema] = SCHEMA

    def check(self) -> None:
        if self.spatial_crops not in (1, 3):
            raise VidpipeError(f"--spatial-crops {self.spatial_crops}: expected 1 or 3")
        if self.window_s is None and self.step_s is not None:
            raise VidpipeError(f"--step {self.step_s:g}: only with --window SECONDS")
        for name, value in (("--window", self.window_s), ("--step", self.step_s)):
            if value is not None and not 0 < value < float("inf"):
                raise VidpipeError(f"{name} {value:g}: expected seconds above 0")
        if self.window_s is not None and (self.step_s or 0) > self.window_s:
            raise VidpipeError(
                f"--step {self.step_s:g}: more than --window {self.window_s:g}, would skip a part of "
                "each video"
            )

    @property
    def use_gpu(self) -> UseGpu:
        """That of `params`, where they are given; else a GPU where there is one."""
        return "auto" if self.params is None else load_params(self.params).train.use_gpu

    @property
    def precision(self) -> Precision:
        """`evaluate.precision` of `params`, where they are given."""
        return "auto" if self.params is None else load_params(self.params).evaluate.precision

    def predictor(self, models: Mapping[str, TrainedModel], device: torch.device) -> Predictor:
        """What makes rows of segments."""
        return Predictor(models, self.temporal_clips, self.spatial_crops, device, self.precision)

    def row(self, found: Prediction, top: int) -> dict[str, Any]:
        """A row of `schema`."""
        return as_row(found, top)

    def open(self, device: torch.device | None = None) -> Opened:
        """Load the models, onto `device` or where `use_gpu` says.

        Raises VidpipeError for what does not fit together.
        """
        self.check()
        device = device or choose_device(self.use_gpu)
        models = open_models(self.folders, self.weights)
        predictor = self.predictor(models, device)
        frames: Mapping[str, Any]
        if self.params is not None:
            given = load_params(self.params).extract
            frames = {name: getattr(given, name) for name in FRAMES}
        else:
            frames = frames_of(models)
        return Opened(
            self,
            predictor,
            predict_extract(frames, timeout_s=self.timeout_s, max_mb=self.max_mb),
        )


@dataclass(frozen=True)
class Opened:
    job: Job
    predictor: Predictor
    extract: ExtractConfig

    def refuse_boxes(self, instead: str) -> None:
        """Raise VidpipeError where a model answers for boxes, not for clips."""
        for name, trained in self.predictor.models.items():
            if "boxes" in trained.task.inputs:
                raise VidpipeError(
                    f"{name} is a model of task {trained.task.name}, which needs boxes; {instead}"
                )

    def rows(self, inputs: Iterable[str], guards: Guards[str, Segment], top: int) -> Rows:
        """Rows of SCHEMA as they come."""
        windows = self.job.window_s is not None
        batch = GPU_BATCH if self.predictor.device.type == "cuda" else 1
        for found in predictions(inputs, guards, self.predictor, windows=windows, batch=batch):
            yield self.job.row(found, top)


class Decoders(ExitStack):
    """Context manager: the decoding processes of a job, and the folder that downloads lie in."""

    def __init__(self, opened: Opened, work: Work = segments) -> None:
        super().__init__()
        job = opened.job
        scratch = self.enter_context(tempfile.TemporaryDirectory(prefix="vidpipe-"))
        request = Request(
            opened.extract,
            opened.predictor.samplings,
            job.temporal_clips,
            job.window_s,
            job.step_s,
            Path(scratch),
        )
        self.guards = self.enter_context(decoders(request, job.workers, work))


def run(
    job: Job,
    inputs: Sequence[str],
    *,
    top: int = 5,
    form: str | None = None,
    out: Path | None = None,
    ray: str | None = None,
    ray_above: int = 50_000,
    work: Work = segments,
) -> None:
    """Write a row for each segment, video and model, and one for each input that cannot be read.

    Raises VidpipeError where the models do not fit, or not one input could be predicted; the rows
    that say why are written all the same.
    """
    form = output_format(form, out)
    with all_rows(job, inputs, top, ray, ray_above, work) as (rows, classes), ExitStack() as stack:
        windows = job.window_s is not None
        file = stack.enter_context(writer(form, out, classes, windows))
        counts = write_rows(rows, file, first_model=next(iter(classes)))
    conclude(counts)


@contextmanager
def all_rows(
    job: Job,
    inputs: Sequence[str],
    top: int,
    ray: str | None,
    ray_above: int,
    work: Work = segments,
) -> Iterator[tuple[Rows, Mapping[str, Sequence[str]]]]:
    """Rows of all inputs as they come, from this process or a Ray, and the classes of each model."""
    job.check()
    given = sources(inputs)
    many = False
    if ray is None and "-" not in inputs:  # standard input is not read ahead
        head = list(itertools.islice(given, ray_above + 1))
        many = len(head) > ray_above
        given = itertools.chain(head, given)
    address = _address(ray, many)
    # Ray's workers have devices of their own; this process then only needs the classes.
    opened = job.open(None if address is None else torch.device("cpu"))
    opened.refuse_boxes("give --proposals FILE or --detector WEIGHTS")
    with ExitStack() as stack:
        if address is None:
            rows = opened.rows(given, stack.enter_context(Decoders(opened, work)).guards, top)
        else:
            rows = _by_ray(job, given, top, address, work)
        yield stack.enter_context(closing(rows)), opened.predictor.classes


def output_format(form: str | None, out: Path | None) -> str:
    by_name = {".jsonl": "jsonl", ".parquet": "parquet"}.get(out.suffix if out else "", "table")
    form = form or by_name
    if form not in FORMATS:
        raise VidpipeError(f"--format {form}: expected {', '.join(FORMATS)}")
    if form == "parquet" and out is None:
        raise VidpipeError("--format parquet: name the file with --out")
    return form


def _address(ray: str | None, many: bool) -> str | None:
    """Address of the Ray to use, or None for this process alone."""
    if ray == "none":
        return None
    return ray or os.environ.get("RAY_ADDRESS") or ("local" if many else None)


def _by_ray(job: Job, inputs: Iterable[str], top: int, address: str, work: Work) -> Rows:
    from pipeline.infra.ray.tasks import stream

    make, workers = lambda: OneWorker(job, top, work), job.workers
    yield from stream(inputs, make, job.schema, workers, address, job.use_gpu)


class OneWorker:
    """What each worker of a cluster holds: the models and one guarded decoder."""

    def __init__(self, job: Job, top: int, work: Work) -> None:
        self.opened, self.top = replace(job, workers=1).open(), top
        self.decoders = Decoders(self.opened, work)

    def __call__(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return self.opened.rows(inputs, self.decoders.guards, self.top)


def write_rows(rows: Iterable[dict[str, Any]], file: Writer, first_model: str) -> Counter[str]:
    """Write the rows; returns counts of videos: `ok`, and one per reason."""
    counts: Counter[str] = Counter()
    for row in rows:
        file.add(row)
        if row["reason"]:
            counts[row["reason"]] += 1
        elif row["part"] == "video" and row["model"] == first_model:
            counts["ok"] += 1
    return counts


def conclude(counts: Counter[str], command: str = "predict", done: str = "predicted") -> None:
    """Say what became of the videos. Raises VidpipeError where there was none, or none was read."""
    total = counts.total()
    bad = {reason: n for reason, n in counts.most_common() if reason != "ok"}
    listed = ", ".join(f"{reason} {n}" for reason, n in bad.items())
    if total == 0:
        raise VidpipeError(f"{command}: no input; expected files, folders, globs, URLs or lists")
    if not counts["ok"]:
        inputs = f"{total} inputs" if total > 1 else "1 input"
        raise VidpipeError(f"{command}: none of {inputs} could be {done} ({listed})")
    sys.stdout.flush()
    skipped = f"; {sum(bad.values())} skipped ({listed})" if bad else ""
    console.print(f"{counts['ok']} of {total} videos {done}{skipped}")
