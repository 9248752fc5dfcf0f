"""A study for a person: one page of HTML, and the same without pictures as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pipeline.infra.html_page import Section, markdown_page, write_page
from pipeline.infra.study.pictures import draw
from pipeline.infra.study.results import Tables
from vidpipe.files import write_text
from vidpipe.study.recommend import RULES
from vidpipe.video.store import FrameStore
from vidpipe.viz.comparison import ORDER_NAMES, TOP1

HARDEST = 12
"""Clips of the page."""
CLASSES = 40
"""Rows of the table of classes: of more, those on which the methods differ most."""
ACCURACY_NOTE = (
    "Each clip is tested once per seed, by a training that saw none of its group. 95 % intervals:"
    " bootstrap over groups crossed with seeds, widened for few groups. p against chance: labels "
    "permuted within groups, Holm."
)
COSTS_NOTE = (
    "GFLOPs are multiply-accumulates: of a view every token through every block, as the papers print"
    " them; of a training clip what is computed, forward and backward. Dashed: the Pareto front, which"
    " no other row beats in both."
)
SENSITIVITY_NOTE = (
    "Validation within the training part of the folds, mean over the trials of one learning rate. Of"
    " those that were stopped early, which are rings in the picture, the last accuracy."
)
BEST_NOTE = (
    "Difference of {score} in points with its 95 % interval; p: {permuted} "
    "(exact for few groups). Adjusted p against the best: step-down test of the range of all "
    "rows, since the best was chosen on these very clips. Adjusted p against the reference: Holm."
    " What is not significant is within noise: it may still differ."
)
SEARCH_NOTE = (
    "Each row was tuned within the training part of each fold alone, on groups held out from it; "
    "the chosen setting was then trained on all of that part and tested once."
)
FLIPPED, EXCHANGED = (
    "signs of whole groups flipped",
    "scores of whole groups exchanged, and all ranked anew",
)
MAP_NOTE = (
    " mAP: a clip is ranked among those that the same training tested; the AP of a class is the mean "
    "precision at the ranks of all clips that have it. Of a mAP of 100 % there is no interval."
)
TIME_NOTE = (
    "{score} of the middle view with its frames in order, reversed, shuffled, and all replaced by "
    "the middle one; lost by shuffling, with the interval and p over groups."
)

Text = Callable[[Any], str]


def percent(value: Any) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.1f}"


def points(value: Any) -> str:
    return "-" if pd.isna(value) else f"{100 * value:+.1f}"


def number(value: Any) -> str:
    return "-" if pd.isna(value) else f"{value:.3g}"


def _range(table: pd.DataFrame, low: str, high: str, text: Text) -> list[str]:
    pairs = zip(table[low], table[high], strict=True)
    return ["-" if pd.isna(a) or pd.isna(b) else f"{text(a)} to {text(b)}" for a, b in pairs]


def _rows(columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Header and rows of a Section, of its columns."""
    return {
        "header": list(columns),
        "rows": [list(row) for row in zip(*columns.values(), strict=True)],
    }


def accuracy_section(tables: Tables) -> Section:
    table = tables.accuracy
    mean = "mean_class_accuracy"
    columns: dict[str, Sequence[str]] = {
        "method": table.method.tolist(),
        **_scores(tables, table),
    }
    if mean in table:
        columns["mean class %"] = [percent(v) for v in table[mean]]
        columns["95 % "] = _range(table, f"{mean}_low", f"{mean}_high", percent)
    columns |= {
        "p (chance)": [number(v) for v in table.p_chance],
        "groups": table.groups.astype(str).tolist(),
        "clips": table.clips.astype(str).tolist(),
        "seeds": table.seeds.astype(str).tolist(),
        "failed": table.failed.astype(str).tolist(),
    }
    lines = (*_reasons(tables), *tables.warnings)
    note = ACCURACY_NOTE + ("" if tables.score == TOP1 else MAP_NOTE)
    return Section("Accuracy", **_rows(columns), note=note, lines=lines)


def _heading(tables: Tables) -> str:
    return "top1 %" if tables.score == TOP1 else f"{tables.score.name} %"


def _scores(tables: Tables, table: pd.DataFrame) -> dict[str, Sequence[str]]:
    """The score of each row of `table`, and its interval."""
    name = tables.score.column
    return {
        _heading(tables): [percent(v) for v in table[name]],
        "95 %": _range(table, f"{name}_low", f"{name}_high", percent),
    }


def _reasons(tables: Tables) -> list[str]:
    """Why rows have no number: of each the first error."""
    missing = tables.accuracy.method[tables.accuracy[tables.score.column].isna()]
    failed = tables.cells[tables.cells.state == "failed"]
    first = failed[failed.method.isin(missing)].groupby("method", sort=False).error.first()
    return [f"{name} has no result: {error}" for name, error in first.items()]


def costs_section(tables: Tables) -> Section:
    table = tables.accuracy
    columns: dict[str, Sequence[str]] = {
        "method": table.method.tolist(),
        _heading(tables): [percent(v) for v in table[tables.score.column]],
        "tunable M": [number(v) for v in table.tunable_m],
        "with head M": [number(v) for v in table.tunable_with_head_m],
        "new at inference M": [number(v) for v in table.new_at_inference_m],
        "GFLOPs/view": [number(v) for v in table.gflops],
        "GFLOPs to train": [number(v) for v in table.training_gflops],
    }
    return Section("Costs", **_rows(columns), note=COSTS_NOTE)


def difference_section(title: str, table: pd.DataFrame, note: str) -> Section:
    verdict = ["differs" if s else "within noise" for s in table.significant]
    columns: dict[str, Sequence[str]] = {
        "method": table.method.tolist(),
        "against": table.reference.tolist(),
        "points": [points(v) for v in table.difference],
        "95 %": _range(table, "low", "high", points),
        "p": [number(v) for v in table.p],
        "p adjusted": [number(v) for v in table.p_adjusted],
        "groups": table.groups.astype(str).tolist(),
        "": ["-" if pd.isna(p) else v for p, v in zip(table.p, verdict, strict=True)],
    }
    return Section(title, **_rows(columns), note=note)


def sections(tables: Tables) -> list[Section]:
    """Everything that is the same on every run of the study: no times, no pictures."""
    score = tables.score
    best = BEST_NOTE.format(score=score.name, permuted=FLIPPED if score == TOP1 else EXCHANGED)
    found = [
        Section("Recommendation", lines=tables.sentences, note=RULES.format(score=score.name)),
        accuracy_section(tables),
        costs_section(tables),
        difference_section("Against the best", tables.best, best),
        difference_section("Against the reference", tables.reference, ""),
    ]
    trials = tables.cells[(tables.cells.kind == "trial") & tables.cells[tables.validated].notna()]
    if len(trials):
        found.append(_sensitivity_section(tables, trials))
    if tables.curves.fraction.nunique() > 1:
        found.append(_curves_section(tables))
    if len(tables.orders):
        found.append(_orders_section(tables))
    found += [_classes_section(tables), _choices_section(tables)]
    failed = tables.cells[tables.cells.state == "failed"]
    if len(failed):
        found.append(_failed_section(failed))
    if len(tables.hardest):
        found.append(_hardest_section(tables))
    return found


def _sensitivity_section(tables: Tables, trials: pd.DataFrame) -> Section:
    early = trials.assign(early=trials.epoch < trials.epochs)
    keys = ["method", "lr"]
    found = early.groupby(keys).agg(
        trials=("lr", "size"), early=("early", "sum"), score=(tables.validated, "mean")
    )
    of_name = {name: i for i, name in enumerate(dict.fromkeys(trials.method))}
    found = found.reset_index().sort_values(
        keys, key=lambda column: column.map(of_name) if column.name == "method" else column
    )
    columns: dict[str, Sequence[str]] = {
        "method": found.method.tolist(),
        "learning rate": [number(v) for v in found.lr],
        "trials": found.trials.astype(str).tolist(),
        "stopped early": found.early.astype(str).tolist(),
        f"val {_heading(tables)}": [percent(v) for v in found.score],
    }
    return Section("Sensitivity", **_rows(columns), note=SENSITIVITY_NOTE)


def _failed_section(failed: pd.DataFrame) -> Section:
    """One line for all cells of a row that failed alike."""
    found = failed.groupby(["method", "kind", "error"], sort=False).fold.agg(["unique", "size"])
    found = found.reset_index()
    columns: dict[str, Sequence[str]] = {
        "method": found.method.tolist(),
        "kind": found.kind.tolist(),
        "cells": found["size"].astype(str).tolist(),
        "folds": [", ".join(str(int(v)) for v in sorted(folds)) for folds in found["unique"]],
        "error": found.error.astype(str).tolist(),
    }
    return Section("Failed cells", **_rows(columns))


def _curves_section(tables: Tables) -> Section:
    curves = tables.curves
    columns: dict[str, Sequence[str]] = {
        "method": curves.method.tolist(),
        "training groups %": [f"{100 * v:g}" for v in curves.fraction],
        **_scores(tables, curves),
        "groups tested": curves.groups.astype(str).tolist(),
    }
    return Section("Learning curves", **_rows(columns))


def _orders_section(tables: Tables) -> Section:
    orders, name = tables.orders, tables.score.name
    columns: dict[str, Sequence[str]] = {"method": orders.method.tolist()}
    columns |= {
        f"{n} %": [percent(v) for v in orders[f"{k}_{tables.score.column}"]]
        for k, n in ORDER_NAMES.items()
    }
    columns["lost by shuffling"] = [points(v) for v in orders.shuffled_drop]
    columns["95 %"] = _range(orders, "shuffled_drop_low", "shuffled_drop_high", points)
    columns["p"] = [number(v) for v in orders.p]
    return Section(
        "Does it use time?",
        **_rows(columns),
        note=TIME_NOTE.format(score=f"{name[0].upper()}{name[1:]}"),
    )


def _classes_section(tables: Tables) -> Section:
    classes = tables.classes
    spread = (classes.max(axis=1) - classes.min(axis=1)).sort_values(ascending=False, kind="stable")
    shown = classes.loc[spread.index[:CLASSES]]
    columns: dict[str, Sequence[str]] = {"class": [str(v) for v in shown.index]}
    columns |= {f"{name} %": [percent(v) for v in shown[name]] for name in shown}
    note = "" if len(classes) <= CLASSES else f"The {CLASSES} classes that differ most."
    return Section("By class", **_rows(columns), note=note)


def _choices_section(tables: Tables) -> Section:
    """Without rows that have no choice, and without parts that took over what another chose."""
    choices = tables.choices
    own = choices[tables.validated].notna()
    same = choices.duplicated(["method", "fold", "settings"], keep="last")
    choices = choices[(choices.trial >= 0) & (own | ~same)]
    columns: dict[str, Sequence[str]] = {
        "method": choices.method.tolist(),
        "fold": choices.fold.astype(str).tolist(),
        "part": [f"{v:g}" for v in choices.fraction],
        "trial": choices.trial.astype(str).tolist(),
        "settings": choices.settings.tolist(),
        f"val {_heading(tables)}": [percent(v) for v in choices[tables.validated]],
    }
    return Section("Chosen settings", **_rows(columns), note=SEARCH_NOTE)


def _hardest_section(tables: Tables) -> Section:
    shown = tables.hardest.head(HARDEST)
    columns: dict[str, Sequence[str]] = {
        "clip": shown.id.tolist(),
        "group": shown.group.astype(str).tolist(),
        "label": shown.label.tolist(),
        "right %": [percent(v) for v in shown.right],
        "most often": shown.most_often.tolist(),
        "trainings": shown.by.astype(str).tolist(),
    }
    note = "Over all rows and seeds."
    if tables.score != TOP1:
        note += " Right: all classes, each said from a probability of 0.5 on."
    return Section("Hardest clips", **_rows(columns), note=note)


def write(
    tables: Tables, title: str, times: pd.DataFrame, store: FrameStore | None, folder: Path
) -> None:
    """`folder`/report.md, and `folder`.html with the pictures, the times and the frames.

    `times`: method, latency_ms, train_s, which are of this machine and so on the page alone.
    """
    own = sections(tables)
    write_text(folder / "report.md", markdown_page(title, own))
    with TemporaryDirectory() as scratch:
        drawn = draw(tables, times, store, HARDEST, Path(scratch))
        shown = [s.with_pictures(*drawn[s.title]) if s.title in drawn else s for s in own]
        extra = [
            Section(k).with_pictures(*v)
            for k, v in drawn.items()
            if k not in {s.title for s in own}
        ]
        if len(times):
            columns = {
                "method": times.method.tolist(),
                "ms a view": [number(v) for v in times.latency_ms],
                "s of training": [number(v) for v in times.train_s],
            }
            note = "Of this machine: one view in fp32, merged where it can be; all trainings of the row."
            extra.append(Section("Times", **_rows(columns), note=note))
        write_page(folder.with_name(f"{folder.name}.html"), title, [*shown, *extra])
