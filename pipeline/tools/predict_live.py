"""`vidpipe predict --live`: JSON lines of what models see in a stream, for as long as it runs."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from pipeline.infra.console import console
from pipeline.infra.stopping import until_signal
from pipeline.tools.predict import Job
from pipeline.tools.prediction_writers import as_row
from vidpipe.errors import VidpipeError
from vidpipe.inference.live.address import Address
from vidpipe.inference.live.latency import Latency
from vidpipe.inference.live.watch import Gap, Lost, Watch, Window
from vidpipe.inference.segments import Request
from vidpipe.inference.stream import Prediction
from vidpipe.text import json_line

STALL_S = 10.0
STEP_S = 1.0


@dataclass(frozen=True)
class Live:
    """How a stream is watched."""

    source: str
    smooth: int = 1
    """Windows whose probabilities are averaged."""
    give_up_s: float | None = None
    stall_s: float = STALL_S
    """Without a picture: the connection is then opened anew."""


@dataclass
class Counts:
    """What the last line says."""

    windows: int = 0
    skipped_windows: int = 0
    dropped_frames: int = 0
    broken_frames: int = 0
    gaps: int = 0
    gap_s: float = 0.0
    losses: int = 0
    latency: Latency = field(default_factory=Latency)

    def row(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name != "latency"}
        return {**plain, "gap_s": round(self.gap_s, 3), **self.latency.summary()}


def run(job: Job, live: Live, top: int = 5, stop: threading.Event | None = None) -> None:
    """Write a JSON line for each window and model, each gap and each loss, until Ctrl-C or the end of a
    source that ends; then one that sums up.

    Raises VidpipeError for an address that is none, models that do not fit, and where there was not one
    window.
    """
    address = Address.of(live.source)
    if live.smooth < 1:
        raise VidpipeError(f"--smooth {live.smooth}: expected 1 or more windows")
    # A stream has no part that would be skipped: a step may be longer than a window.
    replace(job, step_s=None).check()
    opened = replace(job, step_s=None).open()
    opened.refuse_boxes("--live has none; predict files with --proposals or --detector")
    request = Request(
        opened.extract.model_copy(update={"timeout_s": live.stall_s}),
        opened.predictor.samplings,
        job.temporal_clips,
        job.window_s,
        job.step_s or STEP_S,
    )
    started, counts, smoothed = time.monotonic(), Counts(), _Smoothed(live.smooth)
    watch = Watch(address, request, stop or threading.Event(), live.give_up_s)
    shown = address.shown
    _line("started", source=shown, models=list(opened.predictor.classes))
    with until_signal(watch.stop):
        for happened in watch:
            if isinstance(happened, Window):
                (found,) = opened.predictor([happened.segment])
                _count(counts, happened)
                latency_ms = (time.monotonic() - happened.arrived) * 1000
                counts.latency.add(latency_ms)
                end_s = happened.arrived - started
                span = (end_s - happened.segment.end_s, end_s)
                more = {
                    "latency_ms": round(latency_ms, 1),
                    **counts.latency.summary(),
                    "skipped_windows": happened.skipped,
                    "dropped_frames": happened.dropped,
                }
                for model, probabilities in smoothed(found).items():
                    classes = opened.predictor.classes[model]
                    said = Prediction(
                        shown, model, "segment", *span, classes=classes, probabilities=probabilities
                    )
                    row = as_row(said, top)
                    del row["all_probabilities"]
                    row["probabilities"] = [round(p, 6) for p in row["probabilities"]]
                    _line("window", **row, **more)
            elif isinstance(happened, Gap):
                smoothed.clear()
                counts.gaps += 1
                counts.gap_s += happened.seconds
                _line("gap", seconds=round(happened.seconds, 3), attempts=happened.attempts)
            elif isinstance(happened, Lost):
                counts.losses += 1
                _line("lost", **happened._asdict())
    _conclude(shown, counts, time.monotonic() - started, watch)


class _Smoothed:
    """Means over the last windows of each model."""

    def __init__(self, windows: int) -> None:
        self.windows = windows
        self.last: dict[str, deque[Tensor]] = {}

    def __call__(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = {}
        for model, probabilities in found.items():
            last = self.last.setdefault(model, deque(maxlen=self.windows))
            last.append(probabilities)
            means[model] = sum(last, start=probabilities.new_zeros(())) / len(last)
        return means

    def clear(self) -> None:
        """What was before a gap says nothing of what is after it."""
        self.last.clear()


def _count(counts: Counts, window: Window) -> None:
    counts.windows += 1
    counts.skipped_windows += window.skipped
    counts.dropped_frames += window.dropped
    counts.broken_frames += window.broken


def _line(event: str, **values: Any) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stdout.write(json_line({"event": event, "time": now, **values}) + "\n")
    sys.stdout.flush()


def _conclude(shown: str, counts: Counts, seconds: float, watch: Watch) -> None:
    ended = watch.lost_for_good
    why = (
        f"{ended.reason}: {ended.detail}" if ended else "stopped" if watch.stop.is_set() else "end"
    )
    row = counts.row()
    _line("ended", source=shown, why=why, seconds=round(seconds, 3), **row)
    if not counts.windows:
        raise VidpipeError(f"predict: {shown}: not one window in {seconds:.0f} s ({why})")
    times = "/".join(f"{row[f'p{p}_ms']:g}" for p in (50, 95, 99))
    console.print(
        f"{counts.windows} windows in {seconds:.0f} s, latency p50/p95/p99 {times} ms; "
        f"{counts.skipped_windows} windows skipped, {counts.dropped_frames} frames dropped, "
        f"{counts.broken_frames} broken; {counts.gaps} gaps of {counts.gap_s:.1f} s, "
        f"{counts.losses} losses ({why})"
    )
    if ended:
        raise VidpipeError(f"predict: {shown}: {why}")
