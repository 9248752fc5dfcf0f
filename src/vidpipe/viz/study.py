"""Pictures of a study: accuracy against what it costs, over the learning rate, over the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from vidpipe.viz.comparison import TOP1, Score, _interval, _style
from vidpipe.viz.plots import COLOURS, save

MOST_LINES = 16
"""Rows that have a line: more cannot be told apart, and the title says so."""


def pareto_front(table: pd.DataFrame, column: str, score: Score = TOP1) -> list[int]:
    """Positions of the rows that no other beats in both `column` (less is better) and score, by
    `column`.

    Example:
        >>> table = pd.DataFrame({"cost": [1, 2, 3], "top1": [0.5, 0.4, 0.9]})
        >>> pareto_front(table, "cost")
        [0, 2]
    """
    cost, top1 = (table[name].to_numpy(dtype=float) for name in (column, score.column))
    order = sorted(range(len(table)), key=lambda i: (cost[i], -top1[i]))
    front: list[int] = []
    for i in order:
        if np.isnan(cost[i]) or np.isnan(top1[i]):
            continue
        if not front or top1[i] > top1[front[-1]]:
            front.append(i)
    return front


def plot_accuracy_against(
    table: pd.DataFrame, column: str, label: str, title: str, path: Path, score: Score = TOP1
) -> None:
    """The score with its interval against `column`, one point a row, and the Pareto front as a line."""
    known = table.dropna(subset=[column, score.column]).reset_index(drop=True)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(known.to_dict("records")):
        axes.errorbar(
            row[column],
            100 * row[score.column],
            yerr=_interval(row, score.column),
            markersize=9,
            linestyle="none",
            capsize=4,
            label=row["method"],
            zorder=3,
            **_style(i),
        )
    front = known.loc[pareto_front(known, column, score)]
    axes.step(
        front[column],
        100 * front[score.column],
        where="post",
        color="0.5",
        linestyle="--",
        label="Pareto front",
    )
    positive = known[column][known[column] > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        axes.set_xscale("symlog", linthresh=float(positive.min()))
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=label, ylabel=f"{score.name}, % (95 % interval)", title=title)
    _finish(figure, axes, len(known))
    save(figure, path)


def plot_sensitivity(
    trials: pd.DataFrame,
    rows: Sequence[str],
    path: Path,
    column: str = "val_top1",
    score: Score = TOP1,
) -> None:
    """Validation score over the learning rate: columns method, lr, `column`, epoch, epochs. A ring is
    a trial that was stopped early; the line joins the means of the trials of equal rate. A row has the
    colour of its place in `rows`, as in the other pictures."""
    tuned = [(i, name) for i, name in enumerate(rows) if name in set(trials.method)]
    lines = tuned[:MOST_LINES]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for i, name in lines:
        own = trials[(trials.method == name) & trials[column].notna()]
        ended = own[own.epoch == own.epochs]
        colour = COLOURS[i % len(COLOURS)]
        early = own[own.epoch < own.epochs]
        axes.scatter(early.lr, 100 * early[column], facecolors="none", edgecolors=colour, s=30)
        mean = (100 * ended.groupby("lr")[column].mean()).sort_index()
        axes.plot(mean.index, mean, label=name, markersize=7, **_style(i))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())  # it would write formulas
    axes.set(
        xlabel="learning rate",
        ylabel=f"validation {score.name}, %",
        title=_title("Accuracy over the learning rate (rings: stopped early)", len(tuned)),
    )
    _finish(figure, axes, len(lines))
    save(figure, path)


def plot_learning_curves(curves: pd.DataFrame, path: Path, score: Score = TOP1) -> None:
    """The score with its interval over the share of training groups (AIM Fig. 3, ST-Adapter 2c)."""
    name_low, name_high = f"{score.column}_low", f"{score.column}_high"
    curves = curves[curves[score.column].notna()]
    known = list(dict.fromkeys(curves.method))
    names = known[:MOST_LINES]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        own = curves[curves.method == name].sort_values("fraction")
        value = own[score.column]
        low = 100 * (value - own[name_low]).clip(lower=0).fillna(0)
        high = 100 * (own[name_high] - value).clip(lower=0).fillna(0)
        # Apart by a little: intervals at the same place would hide each other.
        x = 100 * own.fraction * (1 + 0.012 * (i - (len(names) - 1) / 2))
        axes.errorbar(x, 100 * value, yerr=[low, high], capsize=3, label=name, **_style(i))
    axes.set(
        xlabel="training groups, %",
        ylabel=f"{score.name}, % (95 % interval)",
        title=_title("Accuracy over the amount of training data", len(known)),
    )
    fractions = sorted(curves.fraction.unique())
    axes.set_xticks([100 * f for f in fractions], [f"{100 * f:g}" for f in fractions])
    _finish(figure, axes, len(names))
    save(figure, path)


def _title(text: str, rows: int) -> str:
    return text if rows <= MOST_LINES else f"{text}: the first {MOST_LINES} of {rows} rows"


def _finish(figure: Figure, axes: Axes, rows: int) -> None:
    axes.set_ylim(0, 104)
    axes.grid(True, color="0.88", zorder=0)
    figure.legend(
        loc="outside right upper" if rows > 6 else "outside lower center",
        ncols=1 if rows > 6 else 3,
    )
