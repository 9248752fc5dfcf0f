"""The pictures. Colours from matplotlib's colour-blind safe sets; text legible at the shown size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from vidpipe.files import atomic_file

if TYPE_CHECKING:  # reports draw from tables, without torch
    from torch import Tensor

# Okabe and Ito: told apart by colour-blind readers too; markers say it a second time.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"

# No date and no version in the file: the same numbers give the same bytes.
_METADATA = {"Software": None}


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as a PNG. Its texts are texts: a class named `$\\frac{x$` is no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    # Labels of ticks may be made only while it is drawn.
    with matplotlib.rc_context({"text.parse_math": False}), atomic_file(path) as temporary:
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


def plot_calibration(table: pd.DataFrame, title: str, path: Path) -> None:
    """Accuracy of each bin of confidence (`metrics.calibration_table`); areas show the clips in it."""
    figure = Figure(figsize=(4.5, 4.5))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", zorder=1)
    axes.text(0.04, 0.09, "perfectly calibrated", rotation=45, color="0.4")
    area = 20 + 280 * table.clips / table.clips.max()
    axes.scatter(table.confidence, table.accuracy, s=area, color=COLOURS[0], zorder=3, alpha=0.8)
    axes.set(
        xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1.03), ylim=(-0.03, 1.05)
    )
    axes.grid(True, color="0.9")
    save(figure, path)
