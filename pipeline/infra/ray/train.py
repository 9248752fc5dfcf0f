"""Ray Train: one training function on none, one or many workers (`tasks.py` has Ray's other uses)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline.infra.ray.connection import joined, where_ray_is
from vidpipe.device import choose_device
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.training.config import TrainConfig

Worker = Callable[[dict[str, Any]], None]


def rank() -> int:
    return int(ray.train.get_context().get_world_rank())


def world_size() -> int:
    return int(ray.train.get_context().get_world_size())


def device(payload: dict[str, Any]) -> torch.device:
    """This worker's device: of the kind that `train` chose, and of those the GPU that Ray gave it."""
    if payload["device"] == "cpu":
        return torch.device("cpu")
    given = ray.train.torch.get_device()
    return given[0] if isinstance(given, list) else given


def report(metrics: dict[str, float]) -> None:
    """Tell Ray of a finished epoch; every rank must call it. Checkpoints are ours, not Ray's."""
    ray.train.report(metrics)


def train(worker: Worker, payload: dict[str, Any], config: TrainConfig, folder: Path) -> None:
    """Run `worker(payload)` on `config.num_workers` workers (0: in this process).

    The payload also says, as `device`, on what kind of device they are to compute.
    `folder` is the run's, for all workers to see; what the worker leaves there is its own, and Ray
    keeps its books in `folder/ray`. Workers that are lost start again `worker_restarts` times, and
    find there what to go on from; a VidpipeError ends the training at once.
    Returns when the worker has returned, at its end or because it was asked to stop.
    Raises VidpipeError when the machine or cluster cannot hold the workers.
    """
    mistake = folder / "error.txt"
    mistake.unlink(missing_ok=True)
    shutil.rmtree(folder / "ray", ignore_errors=True)  # Ray would resume from its own books
    with _cluster(config) as chosen:
        use_gpu = chosen.type == "cuda"
        trainer = ray.train.torch.TorchTrainer(
            _guarded(worker, mistake),
            train_loop_config={**payload, "device": chosen.type},
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=use_gpu,
                resources_per_worker=_resources(config, use_gpu),
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=config.worker_restarts),
            ),
        )
        try:
            if config.num_workers == 0:
                trainer.fit()
            else:
                # Not in the main thread, where Ray would take over Ctrl-C.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(trainer.fit).result()
        except TrainingFailedError as error:
            if mistake.exists():
                raise VidpipeError(mistake.read_text(encoding="utf-8")) from error
            raise _as_users_error(error) from error
    if mistake.exists():
        raise VidpipeError(mistake.read_text(encoding="utf-8"))


def _guarded(worker: Worker, mistake: Path) -> Worker:
    """`worker`, whose user's mistakes are not tried again: they would only be made again.

    Ray restarts workers whatever they raised; on finding the note, they return at once.
    """

    def guarded(payload: dict[str, Any]) -> None:
        if mistake.exists():
            return
        try:
            worker(payload)
        except TrainingStopped:
            return
        except VidpipeError as error:
            with suppress(OSError):
                if world_size() > 1 or ray.is_initialized():
                    mistake.write_text(str(error), encoding="utf-8")
            raise

    return guarded


def _as_users_error(error: TrainingFailedError) -> BaseException:
    """A VidpipeError raised in a worker comes back as itself; anything else keeps its traceback."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, VidpipeError):
                return VidpipeError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error


@contextmanager
def _cluster(config: TrainConfig) -> Iterator[torch.device]:
    """A running Ray for several workers (RAY_ADDRESS or one of our own); none for local mode.

    What it gives is the kind of device that the workers compute on.
    """
    if config.num_workers == 0:
        chosen = choose_device(config.use_gpu)
        available = psutil.virtual_memory().available / 2**30
        if available < config.memory_gb_per_worker:
            raise VidpipeError(
                f"train.memory_gb_per_worker: {config.memory_gb_per_worker:g} GB asked for, "
                f"{available:.1f} GB free on this machine; lower it and train.batch_size"
            )
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        yield chosen
        return
    with joined(where_ray_is(), "RAY_ADDRESS"):
        chosen = choose_device(config.use_gpu, ray.cluster_resources().get("GPU", 0))
        _refuse_impossible(config, chosen.type == "cuda")
        yield chosen


def _resources(config: TrainConfig, use_gpu: bool) -> dict[str, float]:
    """What one worker asks for, in Ray's units."""
    memory = config.memory_gb_per_worker * 2**30
    return {"CPU": config.cpus_per_worker, "memory": memory} | ({"GPU": 1} if use_gpu else {})


def _refuse_impossible(config: TrainConfig, use_gpu: bool) -> None:
    """Raise VidpipeError for what the cluster does not have; Ray would wait for it for ever."""
    have = ray.cluster_resources()
    need = _resources(config, use_gpu)
    fits = min(int(have.get(key, 0) // amount) for key, amount in need.items())
    if fits < config.num_workers:
        raise VidpipeError(
            f"train.num_workers: {config.num_workers} workers need {config.cpus_per_worker} CPU, "
            f"{config.memory_gb_per_worker:g} GB{' and a GPU' if use_gpu else ''} each; this "
            f"cluster ({have.get('CPU', 0):g} CPU, {have.get('memory', 0) / 2**30:.1f} GB, "
            f"{have.get('GPU', 0):g} GPU) holds {fits}"
        )
