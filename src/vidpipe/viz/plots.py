"""The pictures. Colours from matplotlib's colour-blind safe sets; text legible at the shown size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from vidpipe.files import atomic_file

# No date and no version in the file: the same numbers give the same bytes.
_METADATA = {"Software": None}


def save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata=_METADATA, bbox_inches="tight")


def plot_confusion(matrix: Tensor, classes: Sequence[str], title: str, path: Path) -> None:
    """Row-normalised confusion matrix; counts are written into the cells of small ones."""
    n = len(classes)
    share = matrix.float() / matrix.sum(1, keepdim=True).clamp(min=1)
    side = min(4 + 0.45 * n, 24)
    figure = Figure(figsize=(side, side * 0.9))
    axes = figure.subplots()
    image = axes.imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
    if n <= 40:
        axes.set_xticks(range(n), classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), classes)
    if n <= 20:
        for row in range(n):
            for column in range(n):
                if count := int(matrix[row, column]):
                    colour = "black" if share[row, column] > 0.5 else "white"
                    axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the label's clips")
    save(figure, path)


def plot_accuracy_against_parameters(table: pd.DataFrame, path: Path) -> None:
    """Top-1 against tunable parameters (without the head), one labelled point a method."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    markers = "osD^vP*X"
    for i, row in enumerate(table.to_dict("records")):
        axes.scatter(
            row["tunable_m"],
            100 * row["top1"],
            s=110,
            color=colours[i % len(colours)],
            marker=markers[i % len(markers)],
            label=f"{row['method']} ({row['gflops']:.3g} GFLOPs)",
            zorder=3,
        )
    # A linear probe has no tunable parameter but its head: zero must have a place on the axis, so
    # methods that differ by orders of magnitude get an axis that is linear up to the smallest.
    positive = table.tunable_m[table.tunable_m > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        axes.set_xscale("symlog", linthresh=float(positive.min()))
        axes.set_xlim(left=-0.3 * float(positive.min()))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 104)
    axes.grid(True, color="0.88", zorder=0)
    axes.set(
        xlabel="tunable parameters without the head, millions (0: head only)",
        ylabel="top-1, %",
        title="Accuracy against tunable parameters",
    )
    axes.legend(loc="lower right", framealpha=1)
    save(figure, path)
