"""`vidpipe drift`: new videos beside the clips that a model was tested on, as a page."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.infra.console import console, print_table
from pipeline.infra.html_page import Section, markdown_page, picture, write_page
from pipeline.tools.embed import EmbedJob, of_store
from pipeline.tools.predict import all_rows, conclude, write_rows
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.drift import Drift, Side, drift
from vidpipe.files import write_json, write_text
from vidpipe.text import printable
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.probe import opened, video_stream
from vidpipe.video.quarantine import QuarantineError
from vidpipe.video.store import read_manifest
from vidpipe.viz.drift import plot_distances

FACTS = ("short side (pixels)", "rate (frames per second)", "duration (seconds)")
LISTED = 20
"""Of the new clips, the farthest."""


def run(
    job: EmbedJob, inputs: Sequence[str], store: Path, split: str, videos: Path | None, out: Path
) -> Drift:
    """Print and write to `out` how the videos of `inputs` differ from the clips of `split` in `store`.

    `videos`: the folder that the store was made from; without it sizes and rates are not compared, since
    the store has its own.
    Raises VidpipeError where nothing could be read, or a side has fewer than two clips.
    """
    trained = _only(job)
    sources = _sources(store, videos)
    reference = [
        (row["path"], row["feature"], sources.get(row["path"]))
        for row in of_store(job, store, only=split)
    ]
    if not reference:
        raise VidpipeError(f"--split {split}: {store} has no clip of it")
    new = _New()
    with all_rows(job, inputs, 0, "none", 1) as (rows, classes):
        counts = write_rows(rows, new, first_model=next(iter(classes)))
    conclude(counts, "drift", "read")
    found = drift(_side(reference, trained), _side(new.clips, trained))
    _write(found, out)
    return found


class _New:
    """The videos that could be read."""

    def __init__(self) -> None:
        self.clips: list[tuple[str, Any, Path | None]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        if row["status"] == "ok" and row["part"] == "video":
            self.clips.append((row["path"], row["feature"], Path(row["path"])))

    def close(self) -> None:
        """Nothing is open."""


def _only(job: EmbedJob) -> TrainedModel:
    models = job.open().predictor.models
    if len(models) != 1:
        raise VidpipeError(f"--model: {len(models)} of them; drift is that of one")
    (trained,) = models.values()
    return trained


def _sources(store: Path, videos: Path | None) -> dict[str, Path]:
    """Clip of the store -> its file, where `videos` has it."""
    if videos is None:
        return {}
    rows = read_manifest(store).rows
    files = {str(row.id): videos / str(row.path) for row in rows.itertuples(index=False)}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        raise VidpipeError(f"--videos {videos}: has none of the files that {store} was made from")
    return there


def _side(clips: Iterable[tuple[str, Any, Path | None]], trained: TrainedModel) -> Side:
    names, features, files = zip(*clips, strict=True)
    array = np.asarray([list(feature) for feature in features], np.float64)
    facts = [_facts(file) for file in files]
    numbers = {"confidence": _confidence(array, trained)}
    numbers |= {name: np.array([fact[i] for fact in facts]) for i, name in enumerate(FACTS)}
    return Side(names, array, numbers)


@torch.inference_mode()
def _confidence(features: np.ndarray, trained: TrainedModel) -> np.ndarray:
    """The largest probability of each clip, of what its feature gives behind the head."""
    head = trained.model.head
    device = next(trained.model.parameters()).device
    logits = head(torch.from_numpy(features).to(device, torch.float32))
    return trained.task.probabilities(logits.float()).amax(-1).double().cpu().numpy()


def _facts(file: Path | None) -> tuple[float, float, float]:
    """Of the file's header; NaN where it has none."""
    if file is None or not file.is_file():
        return math.nan, math.nan, math.nan
    try:
        with opened(file) as container:
            stream = video_stream(container)
            rate = float(stream.average_rate) if stream.average_rate else math.nan
            context = stream.codec_context
            side = float(min(context.width, context.height)) if context else math.nan
            length = container.duration / 1e6 if container.duration else math.nan
            return side, rate, length
    except QuarantineError:
        return math.nan, math.nan, math.nan


def sections(found: Drift) -> list[Section]:
    """The page, as tables."""
    names = [str(name) for name in found.clips.name]
    folder = os.path.commonpath([str(Path(name).parent) for name in names])
    measures = Section(
        "Measures",
        ["measure", "reference", "new", "distance", "p", "p, all together"],
        [
            [
                row["measure"],
                *(_number(row[name]) for name in ("reference", "new", "distance")),
                *(_chance(row[name]) for name in ("p", "adjusted")),
            ]
            for row in found.table.to_dict("records")
        ],
        "reference, new: medians. distance: of features the energy distance, of others "
        "Kolmogorov-Smirnov's. Clips count as independent; those of one camera are not.",
    )
    far = Section(
        "The farthest clips",
        ["clip", "distance", "far"],
        [
            [
                os.path.relpath(str(row["name"]), folder or "."),
                _number(row["distance"]),
                "yes" if row["far"] else "",
            ]
            for row in found.clips.head(LISTED).to_dict("records")
        ],
        f"Clips are named below {folder or 'the current folder'}. distance: to the nearest clip of "
        "the reference, each channel in its standard deviations. "
        f"far: above {found.limit:.3g}, which 95 % of "
        "the reference are nearer to their own nearest.",
    )
    return [Section("What it comes to", lines=found.sentences()), measures, far]


def _number(value: Any) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _chance(value: float) -> str:
    """A p; smaller ones than a permutation test can find say no more."""
    return "< 0.001" if value < 0.001 else _number(value)


def _write(found: Drift, out: Path) -> None:
    parts = sections(found)
    with TemporaryDirectory() as scratch:
        image = Path(scratch) / "distances.png"
        plot_distances(found.own, found.clips.distance.to_numpy(float), found.limit, image)
        drawn = picture(image, "Distances to the nearest clip of the reference, of both sides")
    parts[0] = parts[0].with_pictures(drawn)
    for part in parts[1:]:
        print_table(part.title, part.header, part.rows)
    for line in found.sentences():
        print(printable(line))
    write_page(out.with_suffix(".html"), "Drift", parts)
    write_text(out.with_suffix(".md"), markdown_page("Drift", parts))
    plain: Mapping[str, Any] = {
        "far": found.far,
        "shifted": found.shifted,
        "clips": {"reference": found.reference, "new": found.new},
        "measures": [
            {key: None if value != value else value for key, value in row.items()}
            for row in found.table.to_dict("records")
        ],
    }
    write_json(out.with_suffix(".json"), plain)
    console.print(f"wrote {out}.html, .md and .json")
