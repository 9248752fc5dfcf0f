"""One cell of a study: trained from where it was left, its result written whole or not at all."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline.infra import offsets
from pipeline.infra.console import console
from pipeline.infra.probes import train_together
from pipeline.infra.study.plan import Cell
from pipeline.infra.training_folder import alone, remove
from pipeline.infra.training_setup import TrainingSetup, searches_offsets
from pipeline.infra.workspace import Workspace, open_store
from vidpipe.data.dataset import ViewSet
from vidpipe.device import choose_device, set_determinism
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.evaluation.evaluate import Evaluator, predict
from vidpipe.features.cache import FeatureCache
from vidpipe.features.sets import CachedTestViews
from vidpipe.files import atomic_folder, disk_errors_named, read_json, remove_temporary, write_json
from vidpipe.methods.frozen_reader import FrozenReader
from vidpipe.methods.split import Split
from vidpipe.params import Params
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.trained.adapter import load_adapter
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.training.loop import Trainer
from vidpipe.training.metrics import EpochMetrics, EpochTiming
from vidpipe.training.side_by_side import Finished
from vidpipe.video.store import FrameStore

PREDICTIONS = "predictions.parquet"


class RungReached(Exception):
    """A trial has come to where it is compared with others; its state is saved."""


class StudyStopped(Exception):
    """The study was asked to stop in mid-cell; the state is saved."""


@dataclass(frozen=True)
class Result:
    """What a cell has come to. Accuracies are fractions."""

    state: str
    """`paused` at its rung, `finished` or `failed`."""
    epoch: int = 0
    epochs: int = 0
    """Epochs trained so far, and of the whole training."""
    history: tuple[dict[str, Any], ...] = ()
    """One mapping an epoch, as `EpochMetrics`."""
    error: str = ""
    seconds: float = 0.0
    """Of training, of all its epochs at their own pace."""
    test_seconds: float = 0.0
    lr: float | None = None
    """The peak rate that was found for `lr: auto`."""

    def at(self, cell: Cell) -> dict[str, Any]:
        """The numbers of the epoch after which `cell` is compared; empty where it failed."""
        goal = rung_epoch(cell, self.epochs)
        return next((row for row in self.history if row["epoch"] == goal), {})


def read_result(folder: Path) -> Result | None:
    """None where there is none."""
    file = folder / "result.json"
    if not file.exists():
        return None
    timing = read_json(folder / "timing.json") if (folder / "timing.json").exists() else {}
    return Result(**read_json(file), **timing)


def write_result(folder: Path, result: Result) -> None:
    """Times apart from the rest, which is the same on every run."""
    plain = asdict(result)
    timing = {key: plain.pop(key) for key in ("seconds", "test_seconds")}
    write_json(folder / "timing.json", timing)
    write_json(folder / "result.json", plain)


def done(cell: Cell, workspace: Workspace) -> Result | None:
    """The cell's result, where it has come to its share of the epochs; a failed one is not done."""
    found = read_result(cell.folder(workspace))
    if found is None or found.state == "failed":
        return None
    enough = found.state == "finished" or found.epoch >= rung_epoch(cell, found.epochs)
    return found if enough else None


def rung_epoch(cell: Cell, epochs: int) -> int:
    """The epoch, of `epochs`, after which the cell is compared with others."""
    return max(1, math.ceil(round(cell.share * epochs, 6)))


class CellRunner:
    """Runs cells in this process, all on one store, whose decoded clips they share.

    Example:
        >>> CellRunner(params, Workspace(Path()))(cell)  # doctest: +SKIP
    """

    def __init__(
        self, params: Params, workspace: Workspace, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.workspace, self.stop = workspace, stop
        self.store = open_store(workspace, params)
        self.device = choose_device(params.train.use_gpu)

    def __call__(self, cell: Cell) -> str:
        """The cell's key, its result written: also where it failed, unless the disk is why.

        Raises StudyStopped when asked to stop, and VidpipeError where nothing can be written.
        """
        if done(cell, self.workspace) is not None:
            return cell.key
        folder = cell.folder(self.workspace)
        remove_temporary(folder)
        try:
            with set_determinism(cell.params.train.deterministic):
                if cell.kind == "trial":
                    self._trial(cell, folder)
                else:
                    self._final(cell, folder)
        except TrainingStopped:
            raise StudyStopped from None
        except Exception as error:
            if _of_the_disk(error):
                with disk_errors_named(folder):  # one line, also from a Ray worker
                    raise
            write_result(folder, Result("failed", error=_line(error)))
        return cell.key

    def together(self, cells: Sequence[Cell]) -> list[str]:
        """Trials of one probe on the same clips, side by side to their last epoch; their keys.

        Raises StudyStopped when asked to stop: none of them is saved then.
        """
        first = cells[0]
        store = self.store.split_as(first.train, first.test)
        configs = [cell.params.method(cell.method) for cell in cells]
        started, where = time.perf_counter(), first.folder(self.workspace)
        try:
            found, epochs = train_together(
                *(first.params, first.method, configs, self.workspace), store=store, stop=self.stop
            )
        except TrainingStopped:
            raise StudyStopped from None
        except Exception as error:
            if _of_the_disk(error):
                with disk_errors_named(where):
                    raise
            found, epochs = [Finished(error=_line(error)) for _ in cells], 0
        seconds = (time.perf_counter() - started) / len(cells)
        for cell, one in zip(cells, found, strict=True):
            history = tuple(asdict(metrics) for metrics in one.history)
            result = Result("finished", len(history), epochs, history, seconds=seconds)
            if one.error:
                result = Result("failed", error=one.error)
            folder = cell.folder(self.workspace)
            remove_temporary(folder)
            write_result(folder, result)
        return [cell.key for cell in cells]

    def _trial(self, cell: Cell, folder: Path) -> None:
        store = self.store.split_as(cell.train, cell.test)
        run = cell.training(self.workspace)
        params = self._with_offsets(cell, run, store)
        setup = TrainingSetup.build(params, cell.method, self.workspace, store=store)
        checkpoints = self.workspace.checkpoints(cell.params, run.name)
        goal = 0

        def on_epoch(metrics: EpochMetrics, timing: EpochTiming) -> None:
            if goal <= metrics.epoch < trainer.epochs:
                raise RungReached

        with alone(run):
            trainer = setup.trainer(
                self.device, checkpoints=checkpoints, stop=self.stop, on_epoch=on_epoch
            )
            goal = rung_epoch(cell, trainer.epochs)
            state = "finished"
            # A checkpoint may already be there: a kill came before the result was written.
            if goal <= trainer.progress.epoch < trainer.epochs:
                state = "paused"
            else:
                try:
                    trainer.run()
                except RungReached:
                    state = "paused"
            write_result(folder, _result(state, trainer))

    def _final(self, cell: Cell, folder: Path) -> None:
        store = self.store.split_as(cell.train, cell.test)
        run = cell.training(self.workspace)
        with alone(run):
            trained, result = self._published(cell), Result("finished")
            if trained is None:
                params = self._with_offsets(cell, run, store)
                setup = TrainingSetup.build(params, cell.method, self.workspace, store=store)
                trained = setup.trained
                if trained.model.trained_names:  # else a baseline, which is only tested
                    checkpoints = self.workspace.checkpoints(cell.params, run.name)
                    trainer = setup.trainer(
                        self.device, checkpoints=checkpoints, stop=self.stop, val_set=None
                    )
                    trainer.run()
                    result = _result("finished", trainer)
            started = time.perf_counter()
            predictions = self._test(cell, trained, store)
            seconds = time.perf_counter() - started
            with atomic_folder(folder) as temporary:
                predictions.to_parquet(temporary / PREDICTIONS, index=False)
                write_result(temporary, Result(**{**asdict(result), "test_seconds": seconds}))
            if run.exists() and any(run.iterdir()):
                remove(run)
            if (searched := self.workspace.ray / f"offsets-{run.name}").exists():
                remove(searched)

    def _with_offsets(self, cell: Cell, run: Path, store: FrameStore) -> Params:
        """The cell's settings, with head offsets found on its training clips where they are `auto`."""
        if not searches_offsets(cell.params, cell.method):
            return cell.params
        name = f"offsets-{run.name}"
        options = (cell.params, cell.method, self.workspace, name)
        found = offsets.search(*options, store=store, stop=self.stop, tracked=False)
        return offsets.with_offsets(cell.params, cell.method, found)

    def _published(self, cell: Cell) -> TrainedModel | None:
        """The adapter of `vidpipe train`, where it is this very training's."""
        adapter = self.workspace.adapter(cell.method)
        if not (adapter / "config.json").exists():
            return None
        if read_json(adapter / "config.json").get("training", {}).get("identity") != cell.identity:
            return None
        return load_adapter(adapter, cell.params.backbone.weights)

    def _split(self, cell: Cell, trained: TrainedModel) -> Split | None:
        """Where the cell's test may go on kept features: those of its other seeds, rates and rows."""
        if cell.params.train.cache_features == "off" or isinstance(trained.model, FrozenReader):
            return None
        try:
            return Split(trained.model)
        except VidpipeError:  # the first block is trained
            return None

    def _test(self, cell: Cell, trained: TrainedModel, store: FrameStore) -> pd.DataFrame:
        config = cell.params.evaluate
        plain = open_views(
            open_clips(store, "val", trained.classes),
            cell.params.sampling,
            cell.params.transform,
            config.temporal_clips,
            config.spatial_crops,
        )
        views: ViewSet | CachedTestViews = plain
        trained.model.to(self.device)
        split = self._split(cell, trained)
        if split is not None:
            train = cell.params.train.model_copy(update={"precision": config.precision})
            root = self.workspace.features(cell.params)
            cache = FeatureCache(root, split, trained.backbone, train, self.device, console.print)
            views = cache.test_views(plain)
        own = ("average", "use_of_time", "batch_size", "precision", "loader_workers")
        evaluator = Evaluator(
            trained.model,
            views,
            (trained.backbone.mean, trained.backbone.std),
            **{name: getattr(config, name) for name in own},
            task=trained.task,
            split=split,
        )
        found = predict(evaluator)
        table = trained.task.predictions_table(found, trained.classes).drop(columns="top5")
        p, y = found.probabilities, found.labels
        if trained.task.score == "top1":
            likely = p.gather(1, y[:, None])[:, 0]
            return table.drop(columns="probabilities").assign(
                label_probability=likely.double().numpy()
            )
        # A mAP is made of the scores of all clips. Of a clip: the mean over classes of what is true.
        for order, reordered in found.orders.items():
            each = trained.task.rows(found, reordered)
            table[f"{order}_probabilities"] = list(each.float().numpy())
        p, y = (trained.task.rows(found, x) for x in (p, y))
        likely = torch.where(y > 0, p, 1 - p).mean(1)
        return table.assign(label_probability=likely.double().numpy())


def _result(state: str, trainer: Trainer) -> Result:
    progress, clips = trainer.progress, len(trainer.train_set)
    seconds = sum(clips / t.clips_per_s for t in progress.timing if t.clips_per_s > 0)
    history = tuple(asdict(metrics) for metrics in progress.history)
    return Result(state, progress.epoch, trainer.epochs, history, seconds=seconds, lr=progress.lr)


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def _of_the_disk(error: BaseException | None) -> bool:
    """Whether a full, read-only or broken disk is behind it, which is no fault of the cell."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        # safetensors has errors of its own, with the system's number in their text.
        if any(f"(os error {number})" in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _line(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return first if isinstance(error, VidpipeError) else f"{type(error).__name__}: {first}"
