"""What a model is known by beside its weights: the training that made it, its data, its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.infra.workspace import Workspace, clips_hash, folder_hash
from vidpipe.files import read_json
from vidpipe.params import Params
from vidpipe.profile import Cost

MEASURES = ("top1", "map", "in_pair_top1", "mean_class_accuracy", "top5")
"""Accuracies of an evaluation, the one that a model is chosen by first."""
CONTEXTS = {"train": "training", "val": "validation"}
"""Split -> MLflow's word for what it is read for."""


def identity_of(folder: Path) -> str:
    """Of the model in an adapter's folder: its training's, or of one from elsewhere its files' hash."""
    training = read_json(folder / "config.json").get("training") or {}
    return str(training.get("identity") or folder_hash(folder)[:16])


def data_splits(workspace: Workspace, params: Params) -> list[dict[str, Any]]:
    """Name, digest, split, source and counts of each split in the store."""
    from vidpipe.video.store import read_manifest

    manifest = read_manifest(
        params.data.store or workspace.store, ("label", "split", "status", "frames")
    )
    usable = manifest.rows[manifest.rows.status == "ok"]
    return [
        {
            "name": Path(params.data.root).name or "data",
            "digest": clips_hash(workspace, params, str(split))[:16],
            "split": CONTEXTS.get(str(split), str(split)),
            "source": params.data.root,
            "counts": {
                "clips": len(rows),
                "classes": len(manifest.classes),
                "clips_of_the_smallest_class": int(rows.label.value_counts().min()),
                "frames": int(rows.frames.sum()),
            },
        }
        for split, rows in usable.groupby("split")
    ]


def data_split(splits: list[dict[str, Any]], split: str) -> dict[str, Any] | None:
    return next((each for each in splits if each["split"] == CONTEXTS[split]), None)


def settings(params: Params, method: str) -> dict[str, Any]:
    """What two models of a project usually differ in, each by a short name."""
    own = params.method(method)
    plain = own.model_dump(mode="json", exclude={"lr", "base_lr", "base_batch_size"})
    return {
        "method": method,
        "backbone": params.backbone.name,
        "num_frames": params.sampling.num_frames,
        "size": params.transform.size,
        "epochs": params.train.epochs,
        "batch_size": params.train.batch_size,
        "lr": "auto" if own.lr == "auto" else own.peak_lr(params.train.batch_size),
        "seed": params.train.seed,
        **{key: value for key, value in plain.items() if value is not None},
    }


def row_numbers(result: dict[str, float]) -> dict[str, float]:
    """Of an evaluation, what a table of models compares: the accuracies, and the bounds of the first."""
    first = next(iter(key for key in MEASURES if key in result), "")
    kept = [*MEASURES, f"{first}_low", f"{first}_high", "ece", "shuffled_drop", "clips"]
    return {key: result[key] for key in kept if key in result}


def cost_numbers(cost: Cost) -> dict[str, float]:
    """Parameters in millions, and the GFLOPs of a view."""
    return {
        "tunable_m": cost.tunable_without_head / 1e6,
        "tunable_with_head_m": cost.tunable / 1e6,
        "new_at_inference_m": cost.new_at_inference / 1e6,
        "gflops": cost.gmacs,
    }
