"""What a study trains: its rows on every fold, fraction and seed, as cells that are trainings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.infra.search_space import resolve
from pipeline.infra.study.rows import (
    Row,
    check_spaces,
    draw_settings,
    row_space,
    study_rows,
    trial_counts,
)
from pipeline.infra.training_setup import searches_offsets, seeded_model
from pipeline.infra.workspace import Workspace, data_hash, open_store, training_hash
from vidpipe.config.identity import config_hash
from vidpipe.data.boxes import read_box_rows
from vidpipe.data.folds import Fold, GroupedClips, grouped_folds, inner_split, training_part
from vidpipe.data.groups import store_clips
from vidpipe.errors import VidpipeError
from vidpipe.params import Params, deciding_sections, parse_params
from vidpipe.profile import Cost, cost, training_gmacs
from vidpipe.tasks.base import Task
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.tasks.registry import TASKS

Kind = Literal["trial", "final"]


@dataclass(frozen=True)
class Cell:
    """One training of a study: a trial, validated within the training part of its fold, or the chosen
    setting, trained on all of that part and tested once."""

    kind: Kind
    row: str
    fold: int
    fraction: float
    seed: int
    trial: int
    params: Params
    method: str
    train: tuple[str, ...]
    """Ids of clips."""
    test: tuple[str, ...]
    """Ids that it is validated (trial) or tested (final) on."""
    identity: str
    """Of the training, as `vidpipe train` names it."""
    share: float = 1.0
    """Of its epochs, until it is compared with other trials."""
    work: float = 0.0
    """1e9 multiply-accumulates of the training that this adds."""

    @property
    def key(self) -> str:
        """Name of its result: the training, and what it is measured on."""
        measured = self.params.evaluate if self.kind == "final" else None
        what = config_hash(self.kind, sorted(self.test), measured)
        return f"{self.method}-{self.identity}-{what}"

    def folder(self, workspace: Workspace) -> Path:
        return cells_folder(workspace) / self.key

    def training(self, workspace: Workspace) -> Path:
        """Where its checkpoints lie: for a final training, where `vidpipe train` has them."""
        name = f"{self.method}-{self.identity}" if self.kind == "final" else self.key
        return workspace.ray / name

    def __str__(self) -> str:
        part = f" at {self.fraction:g}" if self.fraction != 1 else ""
        number = f"trial {self.trial}" if self.kind == "trial" else f"seed {self.seed}"
        return f"{self.row}, fold {self.fold}{part}, {number}"


def cells_folder(workspace: Workspace) -> Path:
    """Results of cells of all studies, by identity: a study that asks for one of them finds it."""
    return workspace.root / "study" / "cells"


@dataclass(frozen=True)
class Part:
    """The training part of a fold, or a fraction of it, with what is tested and what is tuned on."""

    fold: int
    fraction: float
    train: tuple[str, ...]
    test: tuple[str, ...]
    inner: Fold | None

    @property
    def place(self) -> tuple[int, float]:
        return self.fold, self.fraction


@dataclass(frozen=True)
class RowPlan:
    row: Row
    settings: list[tuple[str, ...]]
    """Of each trial, beyond the row's own; the first is empty."""
    cost: Cost | None
    training_gmacs: float
    weights: str
    error: str | None = None
    """Why the row has no model."""

    @property
    def trains(self) -> bool:
        """False for zero_shot: one test a fold serves all seeds and fractions."""
        return self.cost is None or self.cost.tunable > 0


@dataclass(frozen=True)
class Plan:
    """All of a study. Its cells are made as they are asked for, since a final training depends on what
    the trials chose."""

    params: Params
    raw: Mapping[str, Any]
    workspace: Workspace
    rows: list[RowPlan]
    parts: list[Part]
    clips: GroupedClips
    classes: tuple[str, ...]
    counted: tuple[int, ...] | None
    """Of task detection, the classes that the metric counts; None: all."""
    data: str
    own_train: frozenset[str]
    """Ids of the store's own training split."""

    @property
    def task(self) -> Task:
        return TASKS[self.params.data.task]

    @cached_property
    def identity(self) -> str:
        sections = [deciding_sections(self.params, "study", row.row.method) for row in self.rows]
        return config_hash(sections, self.data, [[*row.settings] for row in self.rows])

    @property
    def tuned_parts(self) -> list[Part]:
        """Those in which trials run; the others take over what the largest fraction chose."""
        if self.params.study.retune:
            return self.parts
        most = max(part.fraction for part in self.parts)
        return [part for part in self.parts if part.fraction == most]

    def tuned_part(self, part: Part) -> Part:
        found = (p for p in self.tuned_parts if p.fold == part.fold)
        return next((p for p in found if p.fraction == part.fraction), None) or next(
            p for p in self.tuned_parts if p.fold == part.fold
        )

    def rungs(self, trials: int) -> list[tuple[int, float]]:
        """(trials that train, share of the epochs that they reach) of successive halving (Jamieson and
        Talwalkar 2016). All trials of a rung are compared at once: unlike in ASHA, what goes on does not
        depend on the order in which they finish, so a study that was killed ends as one that was not."""
        by, levels = self.params.study.halving, 0
        while by > 1 and by ** (levels + 1) <= trials:
            levels += 1
        return [(math.ceil(trials / by**k), float(by) ** (k - levels)) for k in range(levels + 1)]

    def trial_cells(
        self, row: RowPlan, part: Part, trials: Sequence[int], before: float, share: float
    ) -> list[Cell]:
        """The trials numbered `trials` of `row` in `part`, which have come to share `before`."""
        assert part.inner is not None
        ids = (part.inner.train, part.inner.test)
        return [
            self._cell("trial", row, part, self.params.train.seed, t, ids, share, share - before)
            for t in trials
        ]

    def final_cells(self, row: RowPlan, part: Part, trial: int) -> list[Cell]:
        """The setting of `trial`, on all of the part, with each seed."""
        first, ids = self.params.train.seed, (part.train, part.test)
        seeds = range(first, first + self.params.study.seeds)
        return [self._cell("final", row, part, seed, trial, ids, 1.0, 1.0) for seed in seeds]

    def _cell(
        self,
        kind: Kind,
        row: RowPlan,
        part: Part,
        seed: int,
        trial: int,
        ids: tuple[tuple[str, ...], tuple[str, ...]],
        share: float,
        added: float,
    ) -> Cell:
        model_seed = seed if row.trains else self.params.train.seed
        params = cell_params(self.raw, (*row.row.sets, *row.settings[trial]), model_seed)
        own = frozenset(ids[0]) == self.own_train or not row.trains
        data = self.data if own else config_hash(self.data, sorted(ids[0]))
        method = row.row.method
        name = training_hash(params, method, self.workspace, row.weights, data)
        epochs = params.train.epochs  # with `steps`, near enough for an estimate
        work = len(ids[0]) * epochs * row.training_gmacs * added
        place = (row.row.name, part.fold, part.fraction, seed, trial)
        return Cell(kind, *place, params, method, *ids, name, share, work)

    def work(self) -> Iterator[tuple[RowPlan, Kind, int, float]]:
        """(row, kind, trainings, 1e9 multiply-accumulates), before anything is known of the choices."""
        for row in self.rows:
            if row.error is not None:
                continue
            for part in self.tuned_parts:
                before = 0.0
                for count, share in self.rungs(len(row.settings)) if part.inner else ():
                    if len(row.settings) > 1:
                        cells = self.trial_cells(row, part, range(count), before, share)
                        yield row, "trial", count if not before else 0, sum(c.work for c in cells)
                    before = share
            for part in self.parts:
                cells = self.final_cells(row, part, 0)
                yield row, "final", len(cells), sum(c.work for c in cells)


def cell_params(raw: Mapping[str, Any], sets: Sequence[str], seed: int) -> Params:
    """As a cell trains: one process, the last epoch's weights, validated every epoch."""
    params = resolve(raw, sets)
    forced = {"seed": seed, "num_workers": 0, "publish": "last", "eval_every": 1}
    train = params.train.model_dump() | forced
    return parse_params({**params.model_dump(), "train": train})


def make_plan(
    params: Params,
    raw: Mapping[str, Any],
    workspace: Workspace,
    only: Sequence[str] | None = None,
) -> Plan:
    """Everything that can be refused before anything is trained; `only`: names of rows.

    Raises VidpipeError.
    """
    study = params.study
    rows = study_rows(params, raw, only)
    check_spaces(params, study_rows(params, raw))
    spaces = [row_space(row, params, raw) for row in rows]
    store = open_store(workspace, params)
    clips = store_clips(params.data.store or workspace.store, params.data)
    counted = None
    if params.data.task == "detection":
        counted = read_box_rows(store.root).evaluated
        views = (params.evaluate.temporal_clips, params.evaluate.spatial_crops)
        # Raises for what boxes cannot have.
        every = open_clips(store.split_as((), store.rows.id), "val", store.classes)
        open_views(every, params.sampling, params.transform, *views)
    own = frozenset(store.rows.id[store.rows.split == "train"])
    empty = [_model(row, raw, list(store.classes), params.train.seed) for row in rows]
    counts = trial_counts(study.trials, study.budget, [row.training_gmacs for row in empty])
    planned = [
        replace(row, settings=draw_settings(space, count, study.search_seed))
        for row, space, count in zip(empty, spaces, counts, strict=True)
    ]
    tuned = any(len(row.settings) > 1 for row in planned)
    parts = list(_parts(params, clips, own, tuned))
    data, classes = data_hash(workspace, params), tuple(store.classes)
    return Plan(params, raw, workspace, planned, parts, clips, classes, counted, data, own)


def _parts(params: Params, clips: GroupedClips, own: frozenset[str], tuned: bool) -> Iterator[Part]:
    study, seed = params.study, params.study.fold_seed
    if study.folds == "split":
        train = tuple(id_ for id_ in clips.ids if id_ in own)
        test = tuple(id_ for id_ in clips.ids if id_ not in own)
        if not (train and test):
            raise VidpipeError("study.folds: split, but the store has no clip of train or of val")
        folds = [Fold(train, test, ())]
    else:
        folds = grouped_folds(clips, study.folds, seed)
    for number, fold in enumerate(folds, start=1):
        whole = clips.only(fold.train)
        for fraction in study.fractions:
            train = training_part(whole, fraction, seed) if fraction < 1 else fold.train
            here = tuned and (study.retune or fraction == max(study.fractions))
            inner = inner_split(whole.only(train), study.inner_fraction, seed) if here else None
            yield Part(number, fraction, tuple(train), fold.test, inner)


def _model(row: Row, raw: Mapping[str, Any], classes: list[str], seed: int) -> RowPlan:
    """What the row's model costs and whose weights it has, or why there is none."""
    try:
        params = cell_params(raw, row.sets, seed)
        trained = seeded_model(params, row.method, classes)
        size = trained.form.size
        trainings = 2 if searches_offsets(params, row.method) else 1
        found = cost(trained.model, size), trainings * training_gmacs(trained.model, size)
        return RowPlan(row, [()], *found, trained.backbone.sha256)
    except VidpipeError as error:
        return RowPlan(row, [()], None, 0.0, "", str(error))
