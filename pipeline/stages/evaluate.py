"""Stage `evaluate`: multi-view accuracy of a trained adapter on the validation clips."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.infra.console import console, progress
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.model_facts import data_split, data_splits, identity_of, row_numbers
from pipeline.infra.workspace import Workspace, clips_hash, data_hash, folder_hash, open_store
from vidpipe.config.identity import config_hash, deciding
from vidpipe.cpu import use_cpu
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import require_same_classes, require_same_task
from vidpipe.evaluation.evaluate import Evaluator, predict
from vidpipe.evaluation.evaluate import batches as cut
from vidpipe.evaluation.spans import evaluate_timeline
from vidpipe.files import atomic_folder, read_json, write_json, write_text
from vidpipe.params import Params
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.trained.adapter import load_adapter
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.store import read_manifest
from vidpipe.viz.plots import plot_calibration, plot_confusion

MOST_TOGETHER = 8
"""Batches that a Ray worker takes at a time."""


def run(params: Params, method: str, workspace: Workspace) -> dict[str, float]:
    use_cpu(params.train.threads)
    config = params.evaluate
    # Ray's workers have devices of their own; this process then only counts the clips.
    here = torch.device("cpu") if config.num_workers else choose_device(params.train.use_gpu)
    trained = load_adapter(workspace.adapter(method), params.backbone.weights)
    _check_pairs(params, trained)
    evaluator = build(params, method, workspace, here, trained)
    adapter = folder_hash(workspace.adapter(method))
    identity = config_hash(config, adapter, data_hash(workspace, params), trained.sampling)
    model = identity_of(workspace.adapter(method))
    splits = data_splits(workspace, params)
    with tracked_run(params.tracking, "evaluate", method, identity, model) as tracked:
        tracked.params({"evaluate": config.model_dump(mode="json"), "method": method})
        clips_of = data_split(splits, "val")
        tracked.datasets([clips_of] if clips_of else [])
        started = time.perf_counter()
        clips = len(evaluator.views)
        with progress() as bar:
            task = bar.add_task(f"evaluate {method}", total=clips, info="")
            predictions = predict(
                evaluator,
                _on_ray(params, method, workspace) if config.num_workers else None,
                on_batch=lambda done: bar.advance(task, done),
            )
        speed = {"evaluate_clips_per_s": clips / (time.perf_counter() - started)}
        predictions.thresholds = trained.thresholds
        result = trained.task.metrics(predictions, trained.classes, config.reversed_pairs)
        timeline = None
        store = open_store(workspace, params)
        if store.has_spans:
            numbers, timeline = evaluate_timeline(evaluator, trained, store, config.timeline)
            result = {**result, **numbers}
        tracked.metrics(result, adapter=adapter, dataset=clips_of)
        tracked.metrics(speed)
        tracked.row(metrics=row_numbers(result))
        for view, top1 in enumerate(predictions.view_top1()):
            tracked.metrics({"view_top1": top1}, step=view)

        by_class = trained.task.per_class_table(predictions, trained.classes)
        folder = workspace.evaluation(method)
        with atomic_folder(folder) as temporary:
            rows = trained.task.predictions_table(predictions, trained.classes)
            known = read_manifest(store.root, ("id",), ["group"]).rows
            if "group" in known:  # whom promotion draws together
                rows["group"] = rows.id.map(dict(zip(known.id, known.group)))
            rows.to_parquet(temporary / "predictions.parquet", index=False)
            if timeline is not None:
                timeline.to_parquet(temporary / "timeline.parquet", index=False)
            confusion = trained.task.confusion_matrix(predictions, trained.classes)
            if confusion is not None:
                plot_confusion(
                    confusion,
                    trained.classes,
                    f"{method}: top-1 {result['top1']:.1%}",
                    temporary / "confusion.png",
                )
            plot_calibration(
                trained.task.calibration_table(predictions),
                f"{method}: expected calibration error {result['ece']:.3f}",
                temporary / "calibration.png",
            )
            write_json(
                temporary / "config.json",
                {
                    **({"scored": scored(by_class)} if "boxes" in trained.task.inputs else {}),
                    "method": method,
                    "task": trained.task.name,
                    "classes": trained.classes,
                    "evaluate": deciding(config),
                    "sampling": trained.sampling.model_dump(mode="json"),
                    "adapter_sha256": adapter,
                    "data_sha256": data_hash(workspace, params),
                    "clips_sha256": clips_hash(workspace, params),
                    "split_number": params.data.split_number,
                },
            )
        write_text(workspace.result(method, "per_class.csv"), by_class.to_csv(index=False))
        write_json(workspace.result(method, "eval.json"), result)
        timing = workspace.timing(method)
        write_json(timing, {**(read_json(timing) if timing.exists() else {}), **speed})
        for file in sorted(folder.iterdir()):
            tracked.artifact(file, "evaluation")
            if file.suffix == ".png":
                tracked.picture(file)
        tracked.artifact(workspace.result(method, "per_class.csv"))
    score = 100 * result[trained.task.score]
    console.print(f"{method}: {trained.task.score_name} {score:.1f} % on {clips} validation clips")
    return result


def scored(by_class: Any) -> list[str]:
    """The classes whose average precision is counted."""
    return [str(name) for name in by_class["class"][by_class.ap.notna()]]


def build(
    params: Params,
    method: str,
    workspace: Workspace,
    device: torch.device,
    trained: TrainedModel | None = None,
) -> Evaluator:
    """The evaluator of `method`'s adapter on the validation clips.

    Raises VidpipeError where the adapter's classes are not those of the data.
    """
    folder = workspace.adapter(method)
    trained = trained or load_adapter(folder, params.backbone.weights)
    store, config = open_store(workspace, params), params.evaluate
    require_same_task(str(folder), trained.task.name, str(store.root), store.task)
    require_same_classes(str(folder), trained.classes, str(store.root), store.classes)
    views = open_views(
        open_clips(store, "val", trained.classes),
        trained.sampling,
        trained.transform,
        config.temporal_clips,
        config.spatial_crops,
    )
    normalisation = (trained.backbone.mean, trained.backbone.std)
    model = trained.model.to(device)
    own = ("average", "use_of_time", "batch_size", "precision", "loader_workers")
    options = {name: getattr(config, name) for name in own}
    return Evaluator(model, views, normalisation, **options, task=trained.task)


def _on_ray(
    params: Params, method: str, workspace: Workspace
) -> Callable[[list[range]], Iterator[dict[str, Any]]]:
    """Batches on `evaluate.num_workers` Ray workers, each with a model of its own."""
    from pipeline.infra.ray.connection import where_ray_is
    from pipeline.infra.ray.tasks import run_tasks

    here, values, root = str(Path.cwd()), params.model_dump(mode="json"), str(workspace.root)

    def make() -> Evaluator:
        os.chdir(here)  # paths in params are relative to the project
        own = Params.model_validate(values)
        use_cpu(own.train.threads)
        return build(own, method, Workspace(Path(root)), choose_device(own.train.use_gpu))

    def apply(batches: list[range]) -> Iterator[dict[str, Any]]:
        address = where_ray_is()
        workers = params.evaluate.num_workers
        # A few batches a task, so that a worker's loader decodes ahead; and several tasks a worker.
        together = max(1, min(MOST_TOGETHER, len(batches) // (4 * workers)))
        tasks = cut(batches[-1].stop, len(batches[0]) * together)
        yield from run_tasks(tasks, make, workers, address, "evaluate", params.train.use_gpu)

    return apply


def _check_pairs(params: Params, trained: TrainedModel) -> None:
    named = {name for pair in params.evaluate.reversed_pairs for name in pair}
    if unknown := sorted(named - set(trained.classes)):
        raise VidpipeError(
            f"evaluate.reversed_pairs: {unknown[0]!r} is not a class of this model "
            f"({', '.join(trained.classes[:8])}, ...)"
        )
