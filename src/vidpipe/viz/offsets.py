"""The picture of a search of head offsets: blocks x heads, and the frame that each head looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from vidpipe.methods.offset_search import Design, Round
from vidpipe.viz.plots import save

SHOWN = 2
"""Rounds whose weighing is drawn: the first and the last."""


def plot_offsets(
    design: Design, heads: int, rounds: Sequence[Round], method: str, path: Path
) -> None:
    """What was found, beside what each head's other frame saved in the first weighing and in the last.

    Cells say dt; heads that look at their own frame are grey.
    """
    whole = [[*dts, *[0] * (heads - len(dts))] for dts in design]
    drawn = list(dict.fromkeys((0, len(rounds) - 1)))
    depth = len(whole)
    width = 1.6 + 0.42 * heads
    figure = Figure(
        figsize=((1 + len(drawn)) * width + 1.5, 1.6 + 0.36 * depth), layout="constrained"
    )
    panels = figure.subplots(1, 1 + len(drawn), squeeze=False)[0]
    figure.suptitle(f"{method}: the frames that heads look at")
    reach = max(1, max(abs(dt) for own in rounds for dts in own.design for dt in dts))
    for axes, index in zip(panels[:-1], drawn, strict=True):
        own = rounds[index]
        saved = np.array(own.saved)
        most = max(float(np.abs(saved).max()), 1e-12)
        shown = np.ma.masked_where(np.array(own.design) == 0, saved)
        image = axes.imshow(shown, cmap=_grey("PiYG"), norm=TwoSlopeNorm(0, -most, most))
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("loss saved", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        count = sum(dt != 0 for dts in own.design for dt in dts)
        _cells(axes, own.design, f"weighing {index + 1}: {count} heads", heads)
    found = np.array(whole)
    image = panels[-1].imshow(
        np.ma.masked_where(found == 0, found),
        cmap=_grey("RdBu"),
        norm=TwoSlopeNorm(0, -reach - 1, reach + 1),
    )
    bar = figure.colorbar(image, ax=panels[-1], shrink=0.8)
    bar.set_label("dt, frames", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _cells(panels[-1], whole, f"found: {int((found != 0).sum())} heads", heads)
    save(figure, path)


def _grey(name: str) -> Any:
    return matplotlib.colormaps[name].with_extremes(bad="0.88")


def _cells(axes: Any, design: Sequence[Sequence[int]], title: str, heads: int) -> None:
    for block, dts in enumerate(design):
        for head, dt in enumerate(dts):
            if dt:
                axes.text(head, block, f"{dt:+d}", ha="center", va="center", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("head")
    axes.set_ylabel("block")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(len(design)))
    axes.tick_params(labelsize=7)
