"""`vidpipe predict --timeline`: when what happens, as a table, for programs, players and editors."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from pipeline.infra.console import PlainConsole
from pipeline.tools.predict import GPU_BATCH, Decoders, Job, Opened, conclude
from pipeline.tools.prediction_inputs import sources
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.files import atomic_file
from vidpipe.inference.segments import Work, segments
from vidpipe.inference.stream import predictions
from vidpipe.tasks.timeline import Merging
from vidpipe.text import json_line, printable
from vidpipe.trained.windows import STEPS, stretches

OF_ONE_VIDEO = ("vtt", "srt", "edl")
FORMATS = ("table", "json", "jsonl", "parquet", *OF_ONE_VIDEO)
SCHEMA = pa.schema(
    [
        *(("path", pa.string()), ("model", pa.string())),
        *(("start", pa.float64()), ("end", pa.float64())),  # seconds
        *(("label", pa.string()), ("score", pa.float64())),
        *(("status", pa.string()), ("reason", pa.string()), ("detail", pa.string())),
    ]
)


@dataclass(frozen=True)
class Timeline:
    """How windows are merged: `smooth` of them are averaged, the others as of `Merging`.

    `rate`: frames a second of an EDL's time codes.
    """

    smooth: int = 1
    threshold: float | None = None
    min_length_s: float = 0.0
    rate: int = 25

    def merging(self, step_s: float) -> Merging:
        return Merging((self.smooth - 1) * step_s, self.threshold, self.min_length_s)


def run(
    job: Job,
    inputs: Sequence[str],
    timeline: Timeline,
    *,
    form: str | None = None,
    out: Path | None = None,
    work: Work = segments,
) -> None:
    """Write start, end, label and score of each stretch of each video, and a row for each input that
    cannot be read. Raises VidpipeError as `predict.run` does."""
    form = _format(form, out)
    job, opened = opened_for_timeline(job)
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with Decoders(opened, work) as held:
        for row in _rows(opened, sources(inputs), held.guards, timeline, counts):
            rows.append(row)
    videos = {(row["path"], row["model"]) for row in rows}
    if form in OF_ONE_VIDEO and counts.total() * len(opened.predictor.models) != 1:
        raise VidpipeError(
            f"--format {form}: is of one video and one model; there are "
            f"{max(len(videos), counts.total())}; take json or parquet, or call it once for each"
        )
    with ExitStack() as stack:
        target = None if out is None else stack.enter_context(atomic_file(out))
        _write(form, target, rows, timeline.rate)
    conclude(counts)


def opened_for_timeline(job: Job) -> tuple[Job, Opened]:
    """The job with a window and a step, and its models."""
    # The step is checked against the window, which the model may know.
    opened = (job if job.window_s is not None else replace(job, step_s=None)).open()
    for name, trained in opened.predictor.models.items():
        if trained.task.name == "detection":
            raise VidpipeError(f"--timeline: {name} is a model of task detection, which has boxes")
    known = [t.window_s for t in opened.predictor.models.values() if t.window_s is not None]
    window = job.window_s or (known[0] if known else None)
    if window is None:
        raise ArgumentError(
            "window",
            ": --timeline needs seconds, since the model was not trained on spans of videos",
        )
    job = replace(job, window_s=window, step_s=job.step_s or window / STEPS)
    job.check()
    return job, replace(opened, job=job)


def _rows(
    opened: Opened,
    inputs: Iterable[str],
    guards: Any,
    timeline: Timeline,
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    batch = GPU_BATCH if opened.predictor.device.type == "cuda" else 1
    waiting: dict[tuple[str, str], list[tuple[float, float, Any]]] = defaultdict(list)
    first = next(iter(opened.predictor.models))
    for found in predictions(inputs, guards, opened.predictor, windows=True, batch=batch):
        base = {
            "path": found.path,
            "model": found.model,
            "status": "ok",
            "reason": "",
            "detail": "",
        }
        key = (found.path, found.model)
        if found.reason:
            counts[found.reason] += 1
            none = {"start": None, "end": None, "label": None, "score": None}
            said = {"status": "quarantined", "reason": found.reason, "detail": found.detail}
            yield {**base, **none, **said}
            for known in [k for k in waiting if k[0] == found.path]:
                del waiting[known]
        elif found.part == "segment":
            waiting[key].append((found.start_s, found.end_s, found.probabilities))
        else:
            counts["ok"] += found.model == first
            trained = opened.predictor.models[found.model]
            merging = timeline.merging(opened.job.step_s or 0.0)
            for s in stretches(trained, waiting.pop(key), merging):
                times = {"start": round(s.start_s, 3), "end": round(s.end_s, 3)}
                yield {**base, **times, "label": s.label, "score": s.score}


def _format(form: str | None, out: Path | None) -> str:
    suffix = out.suffix.lstrip(".") if out else ""
    form = form or (suffix if suffix in FORMATS else "table")
    if form not in FORMATS:
        raise VidpipeError(f"--format {form}: expected {', '.join(FORMATS)}")
    if form == "parquet" and out is None:
        raise VidpipeError("--format parquet: name the file with --out")
    return form


def _write(form: str, target: Path | None, rows: list[dict[str, Any]], rate: int) -> None:
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), target)
        return
    with ExitStack() as stack:
        file: IO[str] = sys.stdout
        if target is not None:
            file = stack.enter_context(target.open("w", encoding="utf-8"))
        if form == "table":
            _print(rows, file)
            return
        good = [row for row in rows if not row["reason"]]
        if form == "json":
            text = json.dumps(
                [{name: row[name] for name in SCHEMA.names} for row in rows], indent=1
            )
        elif form == "jsonl":
            text = "\n".join(json_line({name: row[name] for name in SCHEMA.names}) for row in rows)
        else:
            text = {"vtt": vtt, "srt": srt, "edl": lambda r: edl(r, rate)}[form](good)  # type: ignore[no-untyped-call]
        file.write(text + "\n")


def _print(rows: list[dict[str, Any]], file: IO[str]) -> None:
    console = PlainConsole(file=file)
    if not console.is_terminal:
        console.width = 200
    several = len({row["model"] for row in rows if row["model"]}) > 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("video", overflow="fold")
    for name in (*(["model"] if several else []), "start", "end", "label", "score"):
        table.add_column(
            name, no_wrap=True, justify="right" if name in ("start", "end") else "left"
        )
    for row in rows:
        if row["reason"]:
            cells = ["", "", f"{row['reason']}: {row['detail']}", ""]
        else:
            cells = [
                f"{row['start']:.2f}",
                f"{row['end']:.2f}",
                row["label"],
                f"{row['score']:.1%}",
            ]
        table.add_row(row["path"], *([row["model"]] if several else []), *map(printable, cells))
    console.print(table)


def _clock(seconds: float, mark: str) -> str:
    whole = round(seconds * 1000)
    minutes, milli = divmod(whole, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milli // 1000:02d}{mark}{milli % 1000:03d}"


def _cue(row: dict[str, Any]) -> str:
    """A label as one line of a subtitle, which it cannot end: no arrow, no markup."""
    text = printable(" ".join(row["label"].split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def vtt(rows: Sequence[dict[str, Any]]) -> str:
    """WebVTT: a cue a stretch."""
    cues = [
        f"{_clock(row['start'], '.')} --> {_clock(row['end'], '.')}\n{_cue(row)} {row['score']:.0%}\n"
        for row in rows
    ]
    return "\n".join(["WEBVTT\n", *cues])


def srt(rows: Sequence[dict[str, Any]]) -> str:
    """SubRip: a numbered cue a stretch."""
    return "\n".join(
        f"{number}\n{_clock(row['start'], ',')} --> {_clock(row['end'], ',')}\n{_cue(row)}\n"
        for number, row in enumerate(rows, 1)
    )


def edl(rows: Sequence[dict[str, Any]], rate: int) -> str:
    """CMX 3600: an event a stretch, cut out of the video and put one after the other; `rate` frames a
    second, no drop frames. Its label is a comment."""

    def code(frames: int) -> str:
        seconds, rest = divmod(frames, rate)
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"

    lines, at = ["TITLE: vidpipe", "FCM: NON-DROP FRAME", ""], 0
    for number, row in enumerate(rows, 1):
        start, end = (round(row[name] * rate) for name in ("start", "end"))
        length = max(1, end - start)
        times = (start, start + length, at, at + length)
        lines += [
            f"{number:03d}  AX       V     C        {' '.join(map(code, times))}",
            f"* FROM CLIP NAME: {' '.join(printable(Path(row['path']).name).split())}",
            f"* COMMENT: {printable(' '.join(row['label'].split()))} {row['score']:.2f}",
        ]
        at += length
    return "\n".join(lines)
