"""Stage `evaluate`: multi-view accuracy of a trained adapter on the validation clips."""

from __future__ import annotations

import time

import pandas as pd
import torch

from pipeline.console import progress
from pipeline.tracking import tracked_run
from pipeline.workspace import Workspace, data_hash, folder_hash, open_store
from vidpipe.config import Params, config_hash
from vidpipe.data.dataset import Clips, ViewSet
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.evaluate import (
    Predictions,
    confusion_matrix,
    metrics,
    per_class_table,
    predict,
)
from vidpipe.files import atomic_folder, read_json, write_json, write_text
from vidpipe.training.checkpoint import TrainedModel, load_adapter
from vidpipe.viz.plots import plot_confusion


def run(params: Params, method: str, workspace: Workspace) -> dict[str, float]:
    torch.set_num_threads(params.train.threads)
    trained = load_adapter(workspace.adapter(method), params.backbone.weights)
    _check_pairs(params, trained)
    config = params.evaluate
    clips = Clips(open_store(workspace, params), "val", trained.classes)
    views = ViewSet(
        clips, trained.sampling, trained.transform, config.temporal_clips, config.spatial_crops
    )
    identity = config_hash(
        config,
        folder_hash(workspace.adapter(method)),
        data_hash(workspace, params),
        trained.sampling,
    )
    with tracked_run(params.tracking, "evaluate", method, identity) as tracked:
        tracked.params({"evaluate": config.model_dump(mode="json"), "method": method})
        started = time.perf_counter()
        with progress() as bar:
            task = bar.add_task(f"evaluate {method}", total=len(clips), info="")
            predictions = predict(
                trained.model,
                views,
                (trained.backbone.mean, trained.backbone.std),
                config.batch_size,
                on_batch=lambda clips: bar.advance(task, clips),
            )
        speed = {"evaluate_clips_per_s": len(clips) / (time.perf_counter() - started)}
        result = metrics(predictions, trained.classes, config.reversed_pairs)
        tracked.metrics({**result, **speed})
        for view, top1 in enumerate(predictions.view_top1()):
            tracked.metrics({"view_top1": top1}, step=view)

        folder = workspace.evaluation(method)
        with atomic_folder(folder) as temporary:
            _predictions_table(predictions, trained.classes).to_parquet(
                temporary / "predictions.parquet", index=False
            )
            plot_confusion(
                confusion_matrix(predictions, trained.classes),
                trained.classes,
                f"{method}: top-1 {result['top1']:.1%}",
                temporary / "confusion.png",
            )
        table = per_class_table(predictions, trained.classes)
        write_text(workspace.result(method, "per_class.csv"), table.to_csv(index=False))
        write_json(workspace.result(method, "eval.json"), result)
        timing = workspace.timing(method)
        write_json(timing, {**(read_json(timing) if timing.exists() else {}), **speed})
        tracked.artifact(folder / "confusion.png")
        tracked.artifact(workspace.result(method, "per_class.csv"))
    return result


def _check_pairs(params: Params, trained: TrainedModel) -> None:
    named = {name for pair in params.evaluate.reversed_pairs for name in pair}
    if unknown := sorted(named - set(trained.classes)):
        raise VidpipeError(
            f"evaluate.reversed_pairs: {unknown[0]!r} is not a class of this model "
            f"({', '.join(trained.classes[:8])}, ...)"
        )


def _predictions_table(predictions: Predictions, classes: list[str]) -> pd.DataFrame:
    probabilities = predictions.probabilities
    return pd.DataFrame(
        {
            "id": predictions.ids,
            "label": [classes[i] for i in predictions.labels.tolist()],
            "predicted": [classes[i] for i in probabilities.argmax(1).tolist()],
            **{f"p_{name}": probabilities[:, i].numpy() for i, name in enumerate(classes)},
        }
    )
