"""Trials of a probe, all at once on kept features: what `tune` and `study` do in place of one by one.

A batch of features is read once for all of them (`vidpipe.training.side_by_side`). Nothing is saved on
the way: a probe's epochs on features take seconds, and a search that was stopped begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch

from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.ray.tune import SHOWN, Outcome, Search, sampled
from pipeline.infra.search_space import Space, overrides, resolve
from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from vidpipe.config.identity import config_hash
from vidpipe.device import autocast_dtype, choose_device, set_determinism
from vidpipe.methods.config import MethodConfig
from vidpipe.params import Params
from vidpipe.training.side_by_side import PROBES, RATES, Finished, SideBySide
from vidpipe.video.store import FrameStore


def rates_alone(method: str, keys: Collection[str]) -> bool:
    """Whether parameters `keys` are rates and weight decay of `method`, and nothing else."""
    return set(keys) <= {f"methods.{method}.{name}" for name in RATES}


def of_a_probe(params: Params, method: str) -> bool:
    """Whether trainings of `method` can go side by side on kept features."""
    device = choose_device(params.train.use_gpu)
    half = autocast_dtype(params.train.precision, device) == torch.float16
    if params.method(method).lr == "auto":  # which each training finds by itself
        return False
    return method in PROBES and params.train.cache_features != "off" and not half


def possible(params: Params, method: str, space: Space, search: Search) -> bool:
    """Whether all trials of a search are known beforehand and differ in rates only."""
    return (
        search.algorithm == "random" and rates_alone(method, space) and of_a_probe(params, method)
    )


def train_together(
    params: Params,
    method: str,
    configs: Sequence[MethodConfig],
    workspace: Workspace,
    *,
    store: FrameStore | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_epochs: Callable[[list[Finished]], None] = lambda found: None,
) -> tuple[list[Finished], int]:
    """Trainings of `configs`, side by side in this process: what became of each, and their epochs.

    Raises TrainingStopped when asked to stop.
    """
    setup = TrainingSetup.build(params, method, workspace, store=store)
    device = choose_device(params.train.use_gpu)
    options: dict[str, Any] = {"configs": configs, "stop": stop, "on_epochs": on_epochs}
    with set_determinism(params.train.deterministic):
        trainer = cast(SideBySide, setup.trainer(device, kind=SideBySide, **options))
        trainer.run()
    return trainer.found, trainer.epochs


def run_together(
    raw: dict[str, Any],
    method: str,
    space: Space,
    search: Search,
    epochs: int,
    workspace: Workspace,
    identity: str,
    parent: str | None,
) -> list[Outcome]:
    """The trials that Ray Tune would make, each to its last epoch, with a run of MLflow each."""
    trials = sampled(space, search)
    params = resolve(raw, [], epochs)
    blocks = [resolve(raw, overrides(own), epochs).method(method) for own in trials]
    console.print(f"{len(trials)} trials side by side, on kept features")
    found, _ = train_together(params, method, blocks, workspace)
    outcomes = []
    tracking = params.tracking.model_copy(update={"required": False})
    for number, (own, one) in enumerate(zip(trials, found, strict=True), start=1):
        sets = dict(text.split("=", 1) for text in overrides(own))
        with tracked_run(tracking, "trial", method, config_hash(identity, number, sets)) as run:
            above = {"mlflow.parentRunId": parent} if parent else {}
            run.tags({**above, "vidpipe.trial": number})
            run.params(sets)
            for metrics in one.history:
                shown = {k: v for k, v in metrics.numbers().items() if k in SHOWN}
                run.metrics(shown, metrics.epoch)
            if one.error:
                run.tags({"vidpipe.error": one.error})
        last = one.history[-1] if one.history else None
        numbers = {} if last is None else {"epoch": last.epoch, **last.numbers()}
        outcomes.append(Outcome(own, numbers, one.error or None))
    return outcomes
