"""Ray Tune, and nothing else here knows it: the trials of a search, in this library's loop.

A trial is a process of its own; it reports every epoch and writes nothing. The driver keeps one MLflow
run a trial, nested under the run of the search.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.sample import _BackwardsCompatibleNumpyRng
from ray.tune.search.variant_generator import generate_variants

from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.ray.connection import joined, where_ray_is
from pipeline.infra.search_space import Domain, Space, overrides, resolve
from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from vidpipe.config.identity import config_hash
from vidpipe.device import choose_device, set_determinism
from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig
from vidpipe.training.config import TrainConfig
from vidpipe.training.metrics import EpochMetrics, EpochTiming

SHOWN = ("train_loss", "train_top1", "lr", "val_loss", "val_top1", "val_score", "clips_per_s")
REDUCTION = 3  # one trial in so many goes on at each rung of ASHA


@dataclass(frozen=True)
class Search:
    """How to search. The same values (and `concurrent` 1) try the same trials and stop the same."""

    trials: int = 20
    max_epochs: int | None = None
    concurrent: int = 1
    algorithm: str = "random"
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: what was sampled, its last metrics, and why it failed, if it did."""

    sampled: dict[str, Any]
    metrics: dict[str, Any]
    error: str | None


def run_trials(
    folder: Path,
    payload: dict[str, Any],
    space: Space,
    search: Search,
    config: TrainConfig,
    nested: NestedRuns,
) -> list[Outcome]:
    """All trials, in the order they were made, with Tune's state in `folder` while they run."""
    with _ray(config, search.concurrent) as device:
        resources = _resources(config, device)
        results = _fit(folder, {**payload, "device": device.type}, space, search, resources, nested)
        # `result.config` is empty for a trial that failed before a search went on.
        trials = results._experiment_analysis.trials
        of = {trial.trial_id: results[i] for i, trial in enumerate(trials)}
        return [
            Outcome(
                {key: trial.config[key] for key in space},
                result.metrics or {},
                first_line(result.error) if result.error is not None else None,
            )
            for trial, result in ((trial, of[trial.trial_id]) for trial in as_made(trials))
        ]


def sampled(space: Space, search: Search) -> list[dict[str, Any]]:
    """What the trials of a random search are, in the order that it makes them."""
    state = _BackwardsCompatibleNumpyRng(search.seed)
    spec = {"config": {key: _domain(domain) for key, domain in space.items()}}
    return [
        dict(found["config"])
        for _ in range(search.trials)
        for _, found in generate_variants(spec, random_state=state)
    ]


def as_made(trials: Iterable[Any]) -> list[Any]:
    """The trials in the order they were made. A search that goes on holds them by the time of their last
    report; Tune's searchers count them in the tag's first part."""
    return sorted(trials, key=lambda trial: int(trial.experiment_tag.partition("_")[0]))


def trial(payload: Mapping[str, Any], sampled: dict[str, Any]) -> None:
    """One training, in a process of Ray Tune. It reports every epoch until it ends or is stopped."""
    os.chdir(payload["cwd"])  # paths in params are relative to the project
    params = resolve(payload["raw"], overrides(sampled), payload["epochs"])
    data = params.data.model_copy(update={"store": payload["store"]})
    params = params.model_copy(update={"data": data})
    setup = TrainingSetup.build(params, payload["method"], Workspace(Path()), payload["classes"])

    def on_epoch(metrics: EpochMetrics, timing: EpochTiming) -> None:
        tune.report({"epoch": metrics.epoch, **metrics.numbers(), **vars(timing)})

    with set_determinism(params.train.deterministic):
        setup.trainer(torch.device(payload["device"]), on_epoch=on_epoch).run()


class NestedRuns(tune.Callback):
    """The driver's side of every trial: its MLflow run and its line. Tune pickles it with its state and
    goes on with the copy, so it holds plain values, and open runs belong to the class."""

    opened: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, tracking: TrackingConfig, method: str, identity: str, parent: str | None
    ) -> None:
        # No trial ends for what MLflow does; the search's own run says in the end what is missing.
        self.tracking = tracking.model_copy(update={"required": False})
        self.method = method
        self.identity, self.parent = identity, parent

    def _open(self, trials: list[Any], trial: Any) -> TrackedRun:
        if trial.trial_id not in self.opened:
            number = as_made(trials).index(trial) + 1
            sets = dict(text.split("=", 1) for text in overrides(trial.config))
            own = config_hash(self.identity, number, sets)
            # Entered and left by hand: the run stays open between Tune's calls.
            context = tracked_run(self.tracking, "trial", self.method, own)
            run = context.__enter__()
            parent = {"mlflow.parentRunId": self.parent} if self.parent else {}
            run.tags({**parent, "vidpipe.trial": number})
            run.params(sets)
            self.opened[trial.trial_id] = (number, sets, context, run)
        return self.opened[trial.trial_id][3]  # type: ignore[no-any-return]

    def _close(self, trial: Any, error: BaseException | None, line: str) -> None:
        number, sets, context, _ = self.opened.pop(trial.trial_id)
        context.__exit__(type(error) if error else None, error, None)
        console.print(f"trial {number}  {'  '.join(f'{k}={v}' for k, v in sets.items())}  {line}")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._open(trials, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        shown = {key: result[key] for key in SHOWN if key in result}
        self._open(trials, trial).metrics(shown, int(result["epoch"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._open(trials, trial)
        last = trial.last_result
        name = "score" if "val_score" in last else "top1"
        epoch, value = last.get("epoch", 0), last.get(f"val_{name}", 0.0)
        self._close(trial, None, f"epoch {epoch}  val {name} {value:.1%}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = first_line(trial.get_pickled_error() or trial.get_error())
        self._open(trials, trial).tags({"vidpipe.error": reason})
        self._close(trial, VidpipeError(reason), f"failed: {reason}")

    @classmethod
    def close(cls) -> None:
        """Mark as killed what an interrupted search leaves open."""
        for _, _, context, _ in cls.opened.values():
            context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        cls.opened.clear()


def first_line(error: BaseException | None) -> str:
    """What happened in a trial, without Ray's frames around it."""
    while error is not None and getattr(error, "cause", None) is not None:
        error = error.cause  # type: ignore[attr-defined]
    if error is None:
        return "no reason was given"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0] if isinstance(error, VidpipeError) else f"{type(error).__name__}: {lines[0]}"


def _resources(config: TrainConfig, device: torch.device) -> dict[str, float]:
    """What one trial asks for, in Ray's units."""
    gpu = {"GPU": 1.0} if device.type == "cuda" else {}
    return {
        "CPU": float(config.cpus_per_worker),
        "memory": config.memory_gb_per_worker * 2**30,
    } | gpu


@contextmanager
def _ray(config: TrainConfig, concurrent: int) -> Iterator[torch.device]:
    """RAY_ADDRESS's cluster, or a Ray of our own; refused where the trials do not fit.

    What it gives is the kind of device that the trials compute on.
    """
    with joined(where_ray_is(), "RAY_ADDRESS", log_to_driver=False):
        have = ray.cluster_resources()
        device = choose_device(config.use_gpu, have.get("GPU", 0))
        need = _resources(config, device)
        fits = min(int(have.get(key, 0) // amount) for key, amount in need.items())
        if fits < concurrent:
            raise VidpipeError(
                f"--concurrent {concurrent}: a trial needs {need['CPU']:g} CPU, "
                f"{config.memory_gb_per_worker:g} GB{' and a GPU' if 'GPU' in need else ''} "
                f"(train.cpus_per_worker, memory_gb_per_worker, use_gpu); this cluster holds {fits}"
            )
        yield device


def _fit(
    folder: Path,
    payload: dict[str, Any],
    space: Space,
    search: Search,
    resources: dict[str, float],
    nested: NestedRuns,
) -> tune.ResultGrid:
    """A search that was killed goes on from Tune's own state; its trials in flight start anew."""
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the curves
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    for key, value in quiet.items():
        os.environ.setdefault(key, value)
    # It warns of the files that the loggers, turned off above, would have written.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)

    def trainable(config: dict[str, Any]) -> None:
        trial(payload, config)

    bundle = tune.PlacementGroupFactory([resources])
    work = tune.with_resources(trainable, bundle)
    try:
        if tune.Tuner.can_restore(str(folder)):
            try:
                tuner = tune.Tuner.restore(str(folder), trainable=work)
                console.print("going on with the search that was interrupted")
                return tuner.fit()
            except (VidpipeError, KeyboardInterrupt):
                raise
            except Exception as error:
                console.print(f"the interrupted search cannot go on ({first_line(error)}); anew")
        shutil.rmtree(folder, ignore_errors=True)
        tuner = tune.Tuner(
            work,
            param_space={key: _domain(domain) for key, domain in space.items()},
            tune_config=tune.TuneConfig(
                metric=payload["decisive"],
                mode="max",
                num_samples=search.trials,
                search_alg=_searcher(search),
                scheduler=ASHAScheduler(
                    max_t=payload["epochs"],
                    grace_period=max(1, payload["epochs"] // REDUCTION**2),
                    reduction_factor=REDUCTION,
                ),
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                callbacks=[nested],
                verbose=0,
            ),
        )
        return tuner.fit()
    finally:
        NestedRuns.close()


def _domain(domain: Domain) -> Any:
    """The search space in Tune's terms."""
    if domain.kind == "choice":
        return tune.choice(list(domain.choices))
    make: Mapping[str, Callable[[Any, Any], Any]] = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": lambda low, high: tune.randint(int(low), int(high)),
    }
    return make[domain.kind](domain.low, domain.high)


def _searcher(search: Search) -> Any:
    """With its own limit of trials at a time: Tune ignores its config in a search that goes on."""
    if search.algorithm == "random":
        return BasicVariantGenerator(random_state=search.seed, max_concurrent=search.concurrent)
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(seed=search.seed), search.concurrent)
