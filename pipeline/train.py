"""Stage `train`: adapters on a frozen backbone, by Ray Train, tracked by MLflow."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline import cluster
from pipeline.console import console, progress
from pipeline.tracking import TrackedRun, tracked_run
from pipeline.workspace import Workspace, data_hash, open_store, training_hash
from vidpipe.config import Params
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.mixing import PairMixer
from vidpipe.files import atomic_folder, write_json, write_text
from vidpipe.profile import cost
from vidpipe.training.checkpoint import TrainedModel, load_adapter, new_model, save_adapter
from vidpipe.training.loop import EpochMetrics, EpochTiming, StepInfo, fit


def run(params: Params, method: str, workspace: Workspace) -> dict[str, Any]:
    """Train `method` and publish its adapter checkpoint; returns the last epoch's metrics."""
    torch.set_num_threads(params.train.threads)
    store = open_store(workspace, params)
    classes = list(store.classes)
    trained = _seeded_model(params, method, classes)
    costs = cost(trained.model, params.transform.size)
    identity = training_hash(params, method, workspace, trained.backbone.sha256)
    name = f"{method}-{identity}"
    with tracked_run(params.tracking, "train", method, identity) as tracked:
        tracked.params(_shown_params(params, method))
        tracked.params({"classes": len(classes), "clips": len(store)})
        tracked.tags({"data.sha256": data_hash(workspace, params)})
        tracked.metrics({f"cost.{k}": v for k, v in vars(costs).items()})
        checkpoint = cluster.train(
            worker,
            {
                "params": params.model_dump(mode="json"),
                "method": method,
                "classes": classes,
                "store": str(workspace.store),
                "cwd": str(Path.cwd()),
                "mlflow": {"uri": tracked.uri, "run_id": tracked.run_id},
            },
            params.train,
            name,
            workspace.ray,
        )
        history = pd.read_csv(checkpoint / "history.csv")
        timing = pd.read_csv(checkpoint / "timing.csv")
        _publish(checkpoint, workspace.adapter(method), params.backbone.weights)
        write_text(workspace.result(method, "history.csv"), history.to_csv(index=False))
        last = {str(k): float(v) for k, v in history.iloc[-1].drop("epoch").items()}
        write_json(workspace.result(method, "train.json"), {**last, "cost": vars(costs)})
        # The first epoch pays for warming up and for filling the cache of decoded clips.
        steady = timing.clips_per_s.iloc[1:] if len(timing) > 1 else timing.clips_per_s
        speed = {"train_clips_per_s": float(steady.median())}
        write_json(workspace.timing(method), speed)
        tracked.metrics(speed)
    shutil.rmtree(workspace.ray / name)
    return last


def _seeded_model(params: Params, method: str, classes: list[str]) -> TrainedModel:
    torch.manual_seed(params.train.seed)
    return new_model(params, method, classes)


def _shown_params(params: Params, method: str) -> dict[str, Any]:
    """What decides this training, for MLflow's table: the method's own block without its name."""
    sections = ("data", "subset", "sampling", "transform", "backbone", "train")
    shown = {key: getattr(params, key).model_dump(mode="json") for key in sections}
    return {
        **shown,
        "method": method,
        "method_config": params.method(method).model_dump(mode="json"),
    }


def _publish(checkpoint: Path, adapter: Path, weights: str) -> None:
    """Copy the checkpoint's adapter to its final place, after proving that it loads."""
    load_adapter(checkpoint, weights)
    with atomic_folder(adapter) as folder:
        for name in ("adapter.safetensors", "config.json"):
            shutil.copyfile(checkpoint / name, folder / name)


def worker(payload: dict[str, Any]) -> None:
    """One training worker: builds everything from plain values, so it can run on any node."""
    os.chdir(payload["cwd"])  # paths in params are relative to the project
    params = Params.model_validate(payload["params"])
    method, classes = payload["method"], payload["classes"]
    torch.set_num_threads(params.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    store = open_store(Workspace(Path(payload["store"]).parents[1]), params)
    trained = _seeded_model(params, method, classes)
    train_set = TrainSet(
        Clips(store, "train", classes, params.subset),
        params.sampling,
        params.transform,
        params.train.seed,
    )
    val_set = ViewSet(Clips(store, "val", classes), params.sampling, params.transform)
    rank = cluster.rank()
    first = rank == 0
    recorder = _Recorder(payload, params, trained) if first else None
    with progress() if first else nullcontext() as bar:
        task = bar.add_task(method, total=None, info="") if bar else None

        def on_step(info: StepInfo) -> None:
            if bar and task is not None:
                bar.update(
                    task,
                    completed=info.step,
                    total=info.total_steps,
                    info=f"loss {info.loss:.3f}  top1 {info.top1:.1%}  {info.clips_per_s:.0f} clips/s",
                )

        def on_epoch(metrics: EpochMetrics, timing: EpochTiming) -> None:
            folder = recorder.epoch(metrics, timing) if recorder else None
            cluster.report({"epoch": metrics.epoch, **metrics.numbers()}, folder)

        fit(
            trained.model,
            train_set,
            val_set,
            params.train,
            (trained.backbone.mean, trained.backbone.std),
            device=cluster.device(),
            rank=rank,
            world_size=cluster.world_size(),
            mixer=PairMixer.of(params.transform, params.train.seed),
            wrap=cluster.wrap,
            on_step=on_step,
            on_epoch=on_epoch,
        )


class _Recorder:
    """Rank 0's bookkeeping at the end of an epoch: checkpoint, MLflow, a line for the log."""

    def __init__(self, payload: dict[str, Any], params: Params, trained: TrainedModel) -> None:
        self.params, self.trained = params, trained
        self.folder = Path(payload["scratch"]) / "checkpoint"
        self.run = TrackedRun(**payload["mlflow"])
        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []

    def epoch(self, metrics: EpochMetrics, timing: EpochTiming) -> Path:
        self.history.append({"epoch": metrics.epoch, "step": metrics.step, **metrics.numbers()})
        self.timing.append(vars(timing))
        self.run.metrics({**metrics.numbers(), **vars(timing)}, metrics.epoch)
        extra = {"epoch": metrics.epoch, "train": self.params.train.model_dump(mode="json")}
        save_adapter(self.folder, self.trained, extra)
        for name, rows in (("history.csv", self.history), ("timing.csv", self.timing)):
            pd.DataFrame(rows).to_csv(self.folder / name, index=False)
        validated = f"  val top1 {metrics.val_top1:.1%}" if metrics.val_top1 is not None else ""
        console.print(
            f"{self.trained.model.name} epoch {metrics.epoch}/{self.params.train.epochs}  "
            f"loss {metrics.train_loss:.3f}  top1 {metrics.train_top1:.1%}{validated}  "
            f"{timing.clips_per_s:.0f} clips/s"
        )
        return self.folder
