"""Stage `export`: the deployable model, proven equal to the trained one on real clips."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.console import console
from pipeline.tracking import tracked_run
from pipeline.workspace import Workspace, folder_hash, open_store
from vidpipe.config import Params, config_hash
from vidpipe.data.dataset import Clips, ViewSet, to_input
from vidpipe.export.latency import latency_ratio
from vidpipe.export.package import (
    inference_model,
    load_package,
    prove_parity,
    save_package,
)
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.methods.linear_probe import LinearProbeConfig
from vidpipe.methods.registry import build_method
from vidpipe.training.checkpoint import TrainedModel, load_adapter


def run(params: Params, method: str, workspace: Workspace) -> dict[str, Any]:
    """Merge where possible, prove, package, log and register. Nothing is published unproven."""
    torch.set_num_threads(params.train.threads)
    trained = load_adapter(workspace.adapter(method), params.backbone.weights)
    views = ViewSet(
        Clips(open_store(workspace, params), "val", trained.classes),
        trained.sampling,
        trained.transform,
    )
    normalisation = (trained.backbone.mean, trained.backbone.std)
    count = min(params.export.parity_clips, len(views))
    # Spread over the split: it is sorted by path, so its first clips are all of one class.
    chosen = [round(i * (len(views) - 1) / max(1, count - 1)) for i in range(count)]
    clips = [to_input(views[i]["video"], *normalisation)[:1] for i in chosen]

    identity = config_hash(params.export, folder_hash(workspace.adapter(method)))
    with tracked_run(params.tracking, "export", method, identity) as tracked:
        tracked.params({"export": params.export.model_dump(mode="json"), "method": method})
        exported = inference_model(trained.model)
        tolerance = params.export.tolerance
        parity = prove_parity(trained.model, exported, clips, tolerance)
        package = workspace.package(method)
        package.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".package.", dir=package.parent) as scratch:
            candidate = Path(scratch) / "package"
            save_package(candidate, trained, exported, parity)
            # What counts is the file that ships: read it back and prove that one too.
            reloaded = load_package(candidate).model
            prove_parity(trained.model, reloaded, clips, tolerance)
            with atomic_folder(package) as folder:
                for file in candidate.iterdir():
                    file.rename(folder / file.name)
        ratio = latency_ratio(reloaded, _plain(trained), clips[0])
        timing = workspace.timing(method)
        speed = {"latency_ratio": ratio}
        write_json(timing, {**(read_json(timing) if timing.exists() else {}), **speed})
        numbers = {
            "parity_max_abs_difference": parity.max_abs_difference,
            "parity_top1_agreement": parity.top1_agreement,
        }
        tracked.metrics({**numbers, **speed})
        tracked.artifact(package / "parity.json")
        example = np.stack([views[i]["video"][0].numpy() for i in (chosen * 2)[:2]])
        version = tracked.model(
            package, folder_hash(package), example, len(trained.classes), params.export, method
        )
    registered = f", registered as version {version}" if version else ""
    console.print(
        f"{method}: max |d logit| {parity.max_abs_difference:.2g} on {parity.clips} clips, latency "
        f"{ratio:.3f} x the plain backbone{registered}"
    )
    return numbers


def _plain(trained: TrainedModel) -> VideoModel:
    """The plain image model run over the same frames: what zero extra cost would be."""
    frames = trained.sampling.num_frames
    config = LinearProbeConfig.model_validate({})
    classes = len(trained.classes)
    return build_method("linear_probe", trained.backbone.vit, classes, frames, config).eval()
