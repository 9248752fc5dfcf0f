"""The pictures of a study's page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from pipeline.infra.html_page import Picture, picture
from pipeline.infra.study.results import Tables
from vidpipe.errors import VidpipeError
from vidpipe.video.store import FrameStore
from vidpipe.viz.comparison import plot_per_class, plot_use_of_time
from vidpipe.viz.data import plot_contact_sheet
from vidpipe.viz.study import plot_accuracy_against, plot_learning_curves, plot_sensitivity

STRIP = 6
"""Frames of a hard clip."""
FRAME = (96, 128)
"""Their size."""
COSTS = {
    "gflops": ("GFLOPs of one view", "against inference cost"),
    "tunable_m": ("tunable parameters without the head, millions", "against tunable parameters"),
    "training_gflops": (
        "GFLOPs of one training clip, forward and backward",
        "against training cost",
    ),
    "latency_ms": ("ms of one view on this machine", "against latency"),
}


def draw(
    tables: Tables, times: pd.DataFrame, store: FrameStore | None, hardest: int, folder: Path
) -> dict[str, list[Picture]]:
    """The pictures of the page by the title of their section, drawn in `folder`; `hardest`: how many
    clips show their frames, where `store` has them."""
    found: dict[str, list[Picture]] = {}
    drawn: Callable[[Path], None]

    def add(section: str, text: str, draw: Callable[[Path], None]) -> None:
        path = folder / f"{len(found)}-{len(found.get(section, []))}.png"
        draw(path)
        found.setdefault(section, []).append(picture(path, text))

    table = tables.accuracy.merge(times, on="method", how="left") if len(times) else tables.accuracy
    score, validated = tables.score, tables.validated
    known = table[score.column].notna()
    for column, (label, text) in COSTS.items():
        if column in table and table[column].notna().any() and known.any():
            title = f"Accuracy {text}"
            drawn = partial(plot_accuracy_against, table, column, label, title, score=score)
            add("Costs", title, drawn)
    if tables.curves.fraction.nunique() > 1:
        drawn = partial(plot_learning_curves, tables.curves, score=score)
        add("Learning curves", "learning curves", drawn)
    trials = tables.cells[tables.cells.kind == "trial"]
    if len(trials) and trials[validated].notna().any():
        names = table.method[known].tolist()
        drawn = partial(plot_sensitivity, trials, names, column=validated, score=score)
        add("Sensitivity", "accuracy over learning rate", drawn)
    if len(tables.classes):
        own = "AP" if score.of_class == "ap" else score.name
        drawn = partial(plot_per_class, tables.classes, score=own)
        add("By class", f"{own} by class", drawn)
    if len(tables.orders):
        drawn = partial(plot_use_of_time, tables.orders, score=score)
        add("Does it use time?", f"{score.name} by order", drawn)
    if store is not None and (strips := _strips(tables.hardest.head(hardest), store)):
        add("Hardest clips", "frames", partial(plot_contact_sheet, strips, "Hardest clips"))
    return found


def _strips(hardest: pd.DataFrame, store: FrameStore) -> list[tuple[str, Any]]:
    """(label, frames) of clips that can be read."""
    place = {id_: row for row, id_ in enumerate(store.rows.id)}
    strips = []
    for row in hardest.to_dict("records"):
        clip = place[row["id"]]
        wanted = np.linspace(0, store.num_frames(clip) - 1, STRIP).round().astype(int).tolist()
        try:
            frames = store.read(clip, wanted)
        except VidpipeError:
            continue
        video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        small = interpolate(video, size=FRAME, mode="bilinear", antialias=True)
        label = f"{row['label']}\n{100 * row['right']:.0f} % right\nas {row['most_often']}"
        strips.append((label, small.round().to(torch.uint8)))
    return strips
