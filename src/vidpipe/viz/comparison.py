"""Pictures that set methods or runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vidpipe.viz.plots import COLOURS, MARKERS, save

MOST_CLASSES = 30
"""Rows of a picture of classes: more than this cannot be read on a page."""


class Score(NamedTuple):
    """The number that methods are compared by."""

    column: str
    """Of a table of methods; with NAME_low and NAME_high, and ORDER_NAME for orders of time."""
    name: str
    """As a person reads it."""
    of_class: str
    """Of a table of classes."""


TOP1, MAP = Score("top1", "top-1", "top1"), Score("map", "mAP", "ap")


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def plot_accuracy_against_parameters(table: pd.DataFrame, path: Path, score: Score = TOP1) -> None:
    """The score against tunable parameters (without the head), one point a method, with its interval."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for i, row in enumerate(table.to_dict("records")):
        axes.errorbar(
            row["tunable_m"],
            100 * row[score.column],
            yerr=_interval(row, score.column),
            markersize=10,
            linestyle="none",
            capsize=4,
            label=f"{row['method']} ({row['gflops']:.3g} GFLOPs)",
            zorder=3,
            **_style(i),
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
        ylabel=f"{score.name}, % (95 % interval)",
        title="Accuracy against tunable parameters",
    )
    axes.legend(loc="lower right", framealpha=1)
    save(figure, path)


def _interval(row: Mapping[Any, Any], column: str = "top1") -> list[list[float]] | None:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if low is None or high is None or low != low:
        return None
    # A bound may pass the estimate by rounding; matplotlib refuses lengths below zero.
    value = row[column]
    return [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]


def plot_accuracy_against_gflops(table: pd.DataFrame, path: Path, score: Score = TOP1) -> None:
    """The score against GFLOPs of a view; a bubble's area is its tunable parameters (AIM, Fig. 1)."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    most = max(float(table.tunable_m.max()), 1e-9)
    for i, row in enumerate(table.to_dict("records")):
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "alpha": 0.65,
            "edgecolors": "black",
        }
        size = 60 + 1400 * row["tunable_m"] / most
        axes.scatter(row["gflops"], 100 * row[score.column], s=size, zorder=3, **style)
        # The legend's own points are of one size: it tells colours, not areas.
        label = f"{row['method']} ({row['tunable_m']:.3g} M)"
        axes.scatter([], [], s=90, label=label, **style)
    axes.margins(x=0.2)
    axes.set_ylim(0, 110)
    axes.grid(True, color="0.88", zorder=0)
    axes.set(
        xlabel="GFLOPs of one view (multiply-accumulates, as the papers count)",
        ylabel=f"{score.name}, %",
        title="Accuracy against cost; area: tunable parameters",
    )
    axes.legend(loc="lower right", framealpha=1)
    save(figure, path)


ORDER_NAMES = {
    "in_order": "in order",
    "reversed": "reversed",
    "shuffled": "shuffled",
    "frozen": "middle frame only",
}


def plot_use_of_time(table: pd.DataFrame, path: Path, score: Score = TOP1) -> None:
    """The score of the middle view with its frames in each order: columns method and NAME_top1 (or what
    else the score is called)."""
    figure = Figure(figsize=(7, 1.6 + 0.55 * len(table)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(table))
    values = {
        name: 100 * table[f"{name}_{score.column}"].to_numpy(dtype=float) for name in ORDER_NAMES
    }
    every = np.stack(list(values.values()))
    axes.hlines(rows, every.min(0), every.max(0), color="0.75", zorder=1)
    for i, (name, found) in enumerate(values.items()):
        # Apart by a little: equal accuracies would hide each other.
        place = rows + (i - 1.5) * 0.12
        axes.scatter(found, place, s=70, label=ORDER_NAMES[name], zorder=3, **_style(i))
    axes.set_yticks(rows, table.method)
    axes.invert_yaxis()
    axes.set_xlim(-3, 103)
    axes.grid(True, axis="x", color="0.88", zorder=0)
    axes.set(
        xlabel=f"{score.name} of the middle view, %", title="What is left without the order of time"
    )
    figure.legend(loc="outside lower center", ncols=4)
    save(figure, path)


def plot_ratios(table: pd.DataFrame, column: str, label: str, title: str, path: Path) -> None:
    """One horizontal bar a method, with its number and a line at 1."""
    known = table[table[column].notna()]
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(known)))
    axes = figure.subplots()
    bars = axes.barh(known.method, known[column], color=COLOURS[0], zorder=3)
    axes.axvline(1, color="black", linewidth=1, linestyle="--", zorder=4)
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(True, axis="x", color="0.88", zorder=0)
    axes.set(xlabel=label, title=title)
    save(figure, path)


def plot_curves(histories: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Training loss and validation top-1 over the epochs, one line a method."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for i, (name, history) in enumerate(histories.items()):
        if "train_loss" in history:  # some methods train nothing
            colour = COLOURS[i % len(COLOURS)]
            loss.plot(history.epoch, history.train_loss, label=name, color=colour)
        if "val_top1" in history:
            known = history[history.val_top1.notna()]
            accuracy.plot(known.epoch, 100 * known.val_top1, label=name, markersize=6, **_style(i))
    loss.set(xlabel="epoch", ylabel="training loss", title="Training loss")
    accuracy.set(xlabel="epoch", ylabel="top-1, %", title="Validation top-1", ylim=(0, 104))
    for axes in (loss, accuracy):
        axes.grid(True, color="0.88")
    if loss.lines:
        loss.legend()
    save(figure, path)


def plot_per_class(table: pd.DataFrame, path: Path, score: str = "top-1") -> None:
    """The score of every class (index) under every method (columns); of many classes, those on which
    the methods differ most."""
    spread = table.max(axis=1) - table.min(axis=1)
    shown = table.loc[spread.sort_values(ascending=False, kind="stable").index[:MOST_CLASSES]]
    figure = Figure(figsize=(3.2 + 1.1 * shown.shape[1], 1.6 + 0.34 * len(shown)))
    axes = figure.subplots()
    values = 100 * shown.to_numpy(dtype=float)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(shown.shape[1]), shown.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(shown)), shown.index)
    for row, column in np.ndindex(*values.shape):
        if (value := values[row, column]) == value:
            colour = "black" if value > 50 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
    few = len(table) <= MOST_CLASSES
    shown_as = "by class, %" if few else f"in %: the {MOST_CLASSES} that differ most"
    axes.set(title=f"{score[0].upper()}{score[1:]} {shown_as}")
    figure.colorbar(image, ax=axes, label=f"{score}, %")
    save(figure, path)


def plot_class_differences(
    table: pd.DataFrame, a: str, b: str, path: Path, score: str = "top-1"
) -> None:
    """`compare.per_class_difference`, the largest gains and losses of b over a (AIM, Fig. 5)."""
    half = MOST_CLASSES // 2
    few = len(table) <= MOST_CLASSES
    shown = table if few else pd.concat([table.head(half), table.tail(half)])
    figure = Figure(figsize=(7.5, 1.6 + 0.32 * len(shown)))
    axes = figure.subplots()
    points = 100 * shown.difference
    colours = [COLOURS[0] if value >= 0 else COLOURS[1] for value in points]
    bars = axes.barh(range(len(shown)), points, color=colours, zorder=3)
    axes.bar_label(bars, fmt="%+.1f", padding=4)
    axes.set_yticks(range(len(shown)), shown["class"])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8, zorder=4)
    axes.margins(x=0.15)
    axes.grid(True, axis="x", color="0.88", zorder=0)
    axes.set(xlabel=f"{score} of {b} minus that of {a}, points", title=f"{b} against {a}, by class")
    save(figure, path)
