"""All cells of a study, wave after wave: trials by successive halving, then what they chose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.infra.console import console, progress
from pipeline.infra.locks import Busy, locked
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.pace import duration
from pipeline.infra.probes import of_a_probe
from pipeline.infra.stopping import Interrupted, StopRequest, asked
from pipeline.infra.study.cell import CellRunner, Result, StudyStopped, done, read_result
from pipeline.infra.study.kept import keep, take_over
from pipeline.infra.study.plan import Cell, Part, Plan, RowPlan
from pipeline.infra.training_folder import alone, remove
from pipeline.infra.workspace import Workspace
from vidpipe.config.identity import config_hash
from vidpipe.errors import VidpipeError
from vidpipe.params import Params
from vidpipe.tasks.base import Task
from vidpipe.training.metrics import decisive
from vidpipe.training.side_by_side import RATES

NONE = -1
"""The choice where every trial failed."""


@dataclass
class Outcome:
    """What a study found, cell by cell."""

    trials: list[tuple[Cell, Result]] = field(default_factory=list)
    """Each trial once, with how far it came."""
    finals: list[tuple[Cell, Result]] = field(default_factory=list)
    chosen: dict[tuple[str, int, float], int] = field(default_factory=dict)
    """(row, fold, fraction) -> the trial whose setting was taken, or NONE."""


def run_study(plan: Plan, parent: TrackedRun, kept: Path) -> Outcome:
    """Every cell that has no result yet is trained, on this process or on `study.num_workers` of Ray.

    What was there before counts: a study that was killed goes on, and what another study has trained is
    taken over, as is what another sitting left in the file `kept`, which is written at the end and when
    asked to stop. Raises Interrupted when asked to stop, with all states saved.
    """
    root = plan.workspace.root / "study"
    with _only_one(root), StopRequest(root / "stop") as request:
        if count := take_over(kept, plan.workspace):
            console.print(f"study {plan.params.study.name}: took {count} cells over from {kept}")
        runner = _Runner(plan, parent, Path(root / "stop"), request)
        try:
            outcome = _run(plan, runner)
        finally:
            keep(runner.cells.values(), plan.workspace, kept)
    return outcome


def _run(plan: Plan, runner: _Runner) -> Outcome:
    outcome = Outcome()
    for search in runner.tune():
        outcome.chosen[search.row.row.name, *search.part.place] = search.choice
        outcome.trials += search.all_trials()
        for cell, _ in search.all_trials():
            _forget(cell, plan.workspace)
    finals = []
    for part in plan.parts:
        tuned = plan.tuned_part(part)
        for row in plan.rows:
            choice = outcome.chosen.get((row.row.name, *tuned.place), NONE)
            outcome.chosen[row.row.name, *part.place] = choice
            if choice != NONE:
                finals += plan.final_cells(row, part, choice)
    outcome.finals = list(runner.wave(finals, "final trainings"))
    return outcome


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Studies share cells, so that one runs at a time."""
    try:
        with locked(folder):
            yield
    except Busy:
        raise VidpipeError(f"{folder}: a study is running here already") from None


class _Runner:
    def __init__(self, plan: Plan, parent: TrackedRun, stop: Path, request: StopRequest) -> None:
        self.plan, self.parent, self.stop, self.request = plan, parent, stop, request
        self.costs = {row.row.name: row.training_gmacs for row in plan.rows}
        self.left: dict[str, float] = {}
        """Work to do, by row."""
        for row, *_, work in plan.work():
            self.left[row.row.name] = self.left.get(row.row.name, 0.0) + work
        self.at_once = max(1, plan.params.study.num_workers)
        self.local: CellRunner | None = None
        self.pace = _Pace()
        self.cells: dict[str, Cell] = {}
        """Every cell that the study came to, by key."""

    def tune(self) -> list[_Search]:
        """Every row in every part that is tuned in, its choice made."""
        searches: dict[tuple[str, int, float], _Search] = {}
        for part in self.plan.tuned_parts:
            for row in self.plan.rows:
                if row.error is None:
                    searches[row.row.name, *part.place] = _Search(self.plan, row, part)
        level = 0
        while waiting := [s for s in searches.values() if level < len(s.rungs)]:
            cells = [cell for search in waiting for cell in search.cells(level)]
            found = {
                cell.key: (cell, result) for cell, result in self.wave(cells, f"rung {level + 1}")
            }
            for search in waiting:
                search.take(level, found)
            level += 1
        return list(searches.values())

    def wave(self, cells: list[Cell], what: str) -> Iterator[tuple[Cell, Result]]:
        """The cells, each with its result, in their order."""
        workspace = self.plan.workspace
        unique = {cell.key: cell for cell in cells}
        self.cells |= unique
        pending = [cell for cell in unique.values() if done(cell, workspace) is None]
        for cell in unique.values():
            if (known := done(cell, workspace)) is not None:
                self.pace.learn(cell, known, self.costs)
                self.left[cell.row] -= cell.work
                self._track(cell, known)
        if pending:
            before = (
                f", {len(unique) - len(pending)} are there already"
                if len(pending) < len(unique)
                else ""
            )
            console.print(
                f"study {self.plan.params.study.name}: {what}: {len(pending)} cells{before}"
            )
        self._train(pending)
        for cell in cells:
            result = read_result(cell.folder(workspace))
            assert result is not None, cell.key
            yield cell, result

    def _train(self, cells: list[Cell]) -> None:
        of_key = {cell.key: cell for cell in cells}
        with progress() as bar:
            task = bar.add_task("study", total=len(cells), info="")
            try:
                for key in self._keys(cells):
                    cell = of_key[key]
                    result = read_result(cell.folder(self.plan.workspace))
                    assert result is not None, key
                    self.pace.learn(cell, result, self.costs)
                    self.left[cell.row] -= cell.work
                    eta = self.pace.left(self.left, self.at_once)
                    bar.update(task, advance=1, info=eta)
                    console.print(f"{cell}: {_line(cell, result, self.plan.task)}; {eta}")
                    self._track(cell, result)
            except StudyStopped:
                raise self._stopped() from None
        if self.request.number is not None:
            raise self._stopped()

    def _stopped(self) -> BaseException:
        number = self.request.number
        if number is None:
            return VidpipeError("the study was stopped by another process; run it again to go on")
        return Interrupted(number, "stopped, and saved; run the same command again to go on")

    def _keys(self, cells: list[Cell]) -> Iterator[str]:
        """Keys of the cells as they are done."""
        params, workspace = self.plan.params, self.plan.workspace
        if not cells:
            return
        if params.study.num_workers == 0:
            self.local = self.local or CellRunner(params, workspace, asked(self.stop))
            for group in side_by_side(cells):
                yield from self.local.together(group) if len(group) > 1 else [self.local(group[0])]
                if self.request.number is not None:
                    return
            return
        yield from _on_ray(cells, params, workspace, self.stop)

    def _track(self, cell: Cell, result: Result) -> None:
        """Its own run in MLflow, under the study's; once."""
        if self.parent.run_id is None:
            return
        mark = cell.folder(self.plan.workspace) / f".{self.parent.run_id}-{result.epoch}"
        if mark.exists():
            return
        config = self.plan.params.tracking.model_copy(update={"required": False})
        with tracked_run(config, "cell", cell.method, cell.key) as run:
            place = {
                k: getattr(cell, k) for k in ("row", "kind", "fold", "fraction", "seed", "trial")
            }
            run.tags({"mlflow.parentRunId": self.parent.run_id, "vidpipe.state": result.state})
            run.tags({"vidpipe.study": self.plan.params.study.name})
            own = cell.params.method(cell.method)
            rate = result.lr or own.peak_lr(cell.params.train.batch_size)
            run.params({**place, "lr": rate})
            for row in result.history:
                shown = ("train_loss", "train_top1", "val_loss", "val_top1", "val_score", "lr")
                numbers = {k: row[k] for k in shown if row.get(k) is not None}
                run.metrics(numbers, row["epoch"])
            if result.error:
                run.tags({"vidpipe.error": result.error})
        mark.touch()


def side_by_side(cells: list[Cell]) -> list[list[Cell]]:
    """The cells in their order, those that can be trained at once together: trials of a probe on kept
    features, on the same clips, that differ in rates and weight decay only."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        key = cell.key
        if cell.kind == "trial" and of_a_probe(cell.params, cell.method):
            block = cell.params.method(cell.method)
            methods = {cell.method: block.model_copy(update=dict.fromkeys(RATES))}
            rest = cell.params.model_copy(update={"methods": methods})
            key = config_hash(cell.method, rest.model_dump(), cell.train, cell.test)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


@dataclass
class _Search:
    """The trials of one row in one part."""

    plan: Plan
    row: RowPlan
    part: Part

    def __post_init__(self) -> None:
        count = len(self.row.settings)
        self.rungs = self.plan.rungs(count) if count > 1 and self.part.inner else []
        self.alive = list(range(count))
        self.found: dict[int, tuple[Cell, Result]] = {}
        self.survivors: list[tuple[Cell, Result]] = []

    def cells(self, level: int) -> list[Cell]:
        before = self.rungs[level - 1][1] if level else 0.0
        share = self.rungs[level][1]
        return self.plan.trial_cells(self.row, self.part, self.alive, before, share)

    def take(self, level: int, found: dict[str, tuple[Cell, Result]]) -> None:
        """Keep the best of this rung's trials for the next."""
        now = [(cell, found[cell.key][1]) for cell in self.cells(level)]
        self.found |= {cell.trial: (cell, result) for cell, result in now}
        ranked = ranking(now, decisive(self.plan.task.score))
        keep = self.rungs[level + 1][0] if level + 1 < len(self.rungs) else len(ranked)
        self.alive = sorted(cell.trial for cell, _ in ranked[:keep])
        self.survivors = ranked

    @property
    def choice(self) -> int:
        """The trial whose setting is taken: the only one where nothing is tuned; NONE: all failed."""
        if not self.rungs:
            return 0
        return self.survivors[0][0].trial if self.survivors else NONE

    def all_trials(self) -> list[tuple[Cell, Result]]:
        return [self.found[trial] for trial in sorted(self.found)]


def ranking(
    trials: Iterable[tuple[Cell, Result]], by: str = "val_top1"
) -> list[tuple[Cell, Result]]:
    """Those that did not fail, the best first: the highest number `by` of their rung's epoch; of equals
    the lowest loss, then the first."""
    good = [(cell, result, result.at(cell)) for cell, result in trials if result.state != "failed"]
    good.sort(key=lambda t: (-t[2][by], t[2]["val_loss"], t[0].trial))
    return [(cell, result) for cell, result, _ in good]


def _forget(cell: Cell, workspace: Workspace) -> None:
    """Its checkpoints, once the choice is made."""
    run = cell.training(workspace)
    if run.is_dir():
        with alone(run):
            remove(run)


class _Pace:
    """Seconds a unit of work, by row, of all that is known."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.work: dict[str, float] = {}

    def learn(self, cell: Cell, result: Result, costs: dict[str, float]) -> None:
        work = len(cell.train) * result.epoch * costs[cell.row]
        if result.seconds > 0 and work > 0:
            self.seconds[cell.row] = (
                self.seconds.get(cell.row, 0.0) + result.seconds + result.test_seconds
            )
            self.work[cell.row] = self.work.get(cell.row, 0.0) + work

    def left(self, work: Mapping[str, float], at_once: int) -> str:
        """How long so much takes, by row, at each row's own pace, or at the mean of the others."""
        known = sum(self.work.values())
        if not known:
            return "time left unknown"
        mean = sum(self.seconds.values()) / known
        seconds = sum(
            max(0.0, round(own, 6))
            * (self.seconds[row] / self.work[row] if row in self.work else mean)
            for row, own in work.items()
        )
        return f"{duration(seconds / at_once)} left"


def _line(cell: Cell, result: Result, task: Task) -> str:
    if result.state == "failed":
        return f"failed: {result.error}"
    last = result.at(cell) if cell.kind == "trial" else {}
    by = decisive(task.score)
    name = "top1" if by == "val_top1" else task.score_name
    shown = f"val {name} {last[by]:.1%}" if last else "tested"
    return f"{shown} after {result.epoch} of {result.epochs} epochs, {result.seconds:.0f} s"


def _on_ray(cells: list[Cell], params: Params, workspace: Workspace, stop: Path) -> Iterator[str]:
    """On `study.num_workers` actors, each with a store of its own."""
    import os

    from pipeline.infra.ray.connection import where_ray_is
    from pipeline.infra.ray.tasks import run_tasks

    here, root, stop = str(Path.cwd()), str(workspace.root), stop.resolve()
    values = params.model_dump(mode="json")

    def make() -> Any:
        os.chdir(here)  # paths in params are relative to the project
        own = Params.model_validate(values)
        return CellRunner(own, Workspace(Path(root)), asked(stop))

    address = params.study.ray_address or where_ray_is()
    workers = min(params.study.num_workers, len(cells))
    yield from run_tasks(cells, make, workers, address, "study", params.train.use_gpu)
