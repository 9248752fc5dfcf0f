"""Pictures of a data set: what a store holds, and clips as a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torchvision.utils import make_grid

from vidpipe.errors import VidpipeError
from vidpipe.viz.plots import save

BLUE, ORANGE = "#0072B2", "#E69F00"
BINS = 24
NAMED_CLASSES = 60
"""More names than this do not fit below the bars."""


def plot_data_stats(counts: pd.DataFrame, clips: pd.DataFrame, title: str, path: Path) -> None:
    """`counts`: a row a class, columns train and val; `clips`: a row a usable clip, with duration
    (seconds), width, height (pixels), source_bytes and nbytes."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1))
    figure.suptitle(title)
    _balance(figure.add_subplot(grid[0, :]), counts)
    duration, size, weight = (figure.add_subplot(grid[1, i]) for i in range(3))

    values = clips.duration.dropna()
    duration.hist(values, bins=_bins(values), color=BLUE)
    duration.set(xlabel="duration, s", ylabel="clips", title="Durations")

    sides = {"width": clips.width, "height": clips.height}
    bins = _bins(pd.concat(list(sides.values())))
    # Side by side: one over the other, the mixed colour looks like a third thing.
    size.hist(list(sides.values()), bins=bins, color=[BLUE, ORANGE], label=list(sides))
    size.set(xlabel="pixels in the store", title="Frame sizes")
    size.legend()

    weights = {"source file": clips.source_bytes / 1e3, "store": clips.nbytes / 1e3}
    known = {name: v[v > 0] for name, v in weights.items()}
    positive = pd.concat(list(known.values()))
    if len(positive):
        # Bytes differ by orders of magnitude: equal steps of their logarithm.
        edges = np.geomspace(positive.min() * 0.99, positive.max() * 1.01, BINS + 1).tolist()
        weight.hist(list(known.values()), bins=edges, color=[BLUE, ORANGE], label=list(known))
        weight.set_xscale("log")
        weight.xaxis.set_major_formatter("{x:g}")
        weight.xaxis.set_minor_formatter(NullFormatter())  # it would write formulas
        weight.legend()
    weight.set(xlabel="kB a clip", title="Bytes")
    for axes in (duration, size, weight):
        axes.grid(True, axis="y", color="0.88")
        axes.set_axisbelow(True)
    save(figure, path)


def _balance(axes: Axes, counts: pd.DataFrame) -> None:
    order = counts.assign(total=counts.train + counts.val).sort_values(
        "total", ascending=False, kind="stable"
    )
    x = np.arange(len(order))
    few = len(order) <= NAMED_CLASSES
    width = 0.8 if few else 1.0  # gaps between hundreds of bars are only a pattern
    axes.bar(x, order.train, width, color=BLUE, label="train")
    axes.bar(x, order.val, width, bottom=order.train, color=ORANGE, label="val")
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set(ylabel="clips", title="Clips a class")
    if few:
        axes.set_xticks(x, [_short(name) for name in order.index])
        if len(order) > 8:
            axes.tick_params(axis="x", rotation=45)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    else:
        ends = [_short(str(order.index[i])) for i in (0, -1)]
        axes.set_xlabel(f"{len(order)} classes by size, from {ends[0]} to {ends[1]}")
    axes.grid(True, axis="y", color="0.88")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)


def _short(name: str, length: int = 32) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _bins(values: pd.Series[Any]) -> list[float]:
    """Edges of bins; clips that are all alike get one narrow bar rather than none."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low < 1e-6 * max(1.0, high):
        return np.linspace(low * 0.9 - 0.5, high * 1.1 + 0.5, BINS).tolist()
    return np.linspace(low, high, BINS + 1).tolist()


def plot_contact_sheet(
    rows: Sequence[tuple[str, Tensor]], title: str, path: Path, line: int = 16
) -> None:
    """One strip of frames a row, labelled at its left. `rows`: (label, (T, 3, H, W) uint8).

    Strips of more than `line` frames are folded. Pixels are not smoothed: they are the model's.
    """
    strips = [
        (label, make_grid(video, nrow=min(line, len(video)), padding=2, pad_value=255))
        for label, video in rows
    ]
    longest = max(strip.shape[2] for _, strip in strips)
    frames = min(line, max(len(video) for _, video in rows))
    width = min(1.25 * frames, 18.0)  # inches
    heights = [width * strip.shape[1] / longest for _, strip in strips]
    gap, margin, head = 0.12, 2.6, 0.5
    total = sum(heights) + gap * len(strips) + head
    if total > 400:  # 2**16 pixels are the most that a picture may have
        raise VidpipeError(f"{path}: {len(strips)} strips are too many for a picture; show fewer")
    figure = Figure(figsize=(margin + width, total))
    figure.text(0.01, 1 - head / 2 / total, title, va="center", fontsize=12)
    y = total - head
    for (label, strip), height in zip(strips, heights, strict=True):
        box = (margin, y - height, width * strip.shape[2] / longest, height)
        axes = figure.add_axes(
            (
                box[0] / (margin + width),
                box[1] / total,
                box[2] / (margin + width),
                box[3] / total,
            )
        )
        axes.imshow(strip.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.axis("off")
        figure.text(
            (margin - 0.1) / (margin + width),
            (y - height / 2) / total,
            label,
            ha="right",
            va="center",
            fontsize=9,
        )
        y -= height + gap
    save(figure, path)
