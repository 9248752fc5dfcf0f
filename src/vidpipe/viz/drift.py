"""How far new clips lie from the known ones, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vidpipe.viz.plots import COLOURS, save


def plot_distances(
    reference: NDArray[np.float64], new: NDArray[np.float64], limit: float, path: Path
) -> None:
    """Histograms of each clip's distance to the nearest other clip of the reference; beyond `limit` a
    clip is far."""
    figure = Figure(figsize=(7, 2.6))
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(np.concatenate([reference, new]), 40)
    for values, name, colour in ((reference, "reference", COLOURS[0]), (new, "new", COLOURS[1])):
        share = np.full(len(values), 100 / len(values))
        axes.hist(values, edges.tolist(), weights=share, color=colour, alpha=0.65, label=name)
    axes.axvline(limit, color="black", linestyle="--", label=f"far: beyond {limit:.3g}")
    axes.set_xlabel("distance to the nearest clip of the reference")
    axes.set_ylabel("% of the clips")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
