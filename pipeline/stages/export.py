"""Stage `export`: the deployable model, proven equal to the trained one on real clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.workspace import Workspace, folder_hash, open_store
from vidpipe.config.identity import config_hash
from vidpipe.cpu import use_cpu
from vidpipe.data.dataset import Clips, ViewSet, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import require_same_classes
from vidpipe.export.config import ExportConfig
from vidpipe.export.latency import latency_ratio
from vidpipe.export.model_card import Facts, model_card, weights_licence
from vidpipe.export.packaging import describe, inference_model, save_package
from vidpipe.export.parity import Parity, prove_parity, prove_program
from vidpipe.export.programs import PixelModel, open_program, require, write_program
from vidpipe.files import atomic_folder, read_json, write_json, write_text
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import LinearProbeConfig
from vidpipe.methods.registry import build_method
from vidpipe.params import Params
from vidpipe.trained.adapter import load_adapter
from vidpipe.trained.card import TrainedModel
from vidpipe.trained.package import load_package
from vidpipe.video.store import read_manifest


def run(params: Params, method: str, workspace: Workspace) -> dict[str, Any]:
    """Merge where possible, prove, package, log and register; a model is published only when proven.

    The proof is of the CPU's fp32, whose limits `export.tolerance` has; the latency is measured where
    `train.use_gpu` says.
    """
    use_cpu(params.train.threads)
    device = choose_device(params.train.use_gpu)
    require(params.export.formats)
    adapter = workspace.adapter(method)
    trained = load_adapter(adapter, params.backbone.weights)
    store = open_store(workspace, params)
    require_same_classes(str(adapter), trained.classes, str(store.root), store.classes)
    views = ViewSet(Clips(store, "val", trained.classes), trained.sampling, trained.transform)
    count = min(params.export.parity_clips, len(views))
    # Spread over the split: it is sorted by path, so its first clips are all of one class.
    chosen = [round(i * (len(views) - 1) / max(1, count - 1)) for i in range(count)]
    clips = torch.stack([views[i]["video"][0] for i in chosen])

    identity = config_hash(params.export, folder_hash(adapter))
    with tracked_run(params.tracking, "export", method, identity) as tracked:
        tracked.params({"export": params.export.model_dump(mode="json"), "method": method})
        package = workspace.package(method)
        package.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".package.", dir=package.parent) as scratch:
            candidate = Path(scratch) / "package"
            served, parities = _write(candidate, trained, clips, views, params)
            facts = _facts(params, method, workspace, trained)
            card = model_card(trained, served.model, parities, facts)
            write_text(candidate / "MODEL_CARD.md", card)
            with atomic_folder(package) as folder:
                for file in candidate.iterdir():
                    file.rename(folder / file.name)
        normalised = _normalised(trained, clips[:1]).to(device)
        ratio = latency_ratio(served.model.to(device), _plain(trained).to(device), normalised)
        timing = workspace.timing(method)
        speed = {"latency_ratio": ratio}
        write_json(timing, {**(read_json(timing) if timing.exists() else {}), **speed})
        numbers = {
            "parity_max_abs_difference": parities[0].max_abs_difference,
            "parity_top1_agreement": parities[0].top1_agreement,
        }
        tracked.metrics({**numbers, **speed, **_by_file(parities)})
        for name in ("parity.json", "MODEL_CARD.md"):
            tracked.artifact(package / name)
        version = _register(tracked, package, clips, trained, params.export, method)
    registered = f", registered as version {version}" if version else ""
    console.print(
        f"{method}: max |d logit| {parities[0].max_abs_difference:.2g} on {len(clips)} clips, "
        f"latency {ratio:.3f} x the plain backbone{registered}"
    )
    for parity in parities[1:]:
        lost = "" if parity.top1 is None else f", top1 {parity.top1_fp32:.4g} -> {parity.top1:.4g}"
        console.print(f"  {parity.file}: max |d logit| {parity.max_abs_difference:.2g}{lost}")
    return numbers


def _write(
    folder: Path, trained: TrainedModel, clips: Tensor, views: ViewSet, params: Params
) -> tuple[TrainedModel, list[Parity]]:
    """The package without its card, each file read back and proven; the model that was read back."""
    config, tolerance = params.export, params.export.tolerance
    exported = inference_model(trained.model)
    normalised = [_normalised(trained, clip[None]) for clip in clips]
    parity = prove_parity(trained.model, exported, normalised, tolerance)
    save_package(folder, trained, exported, parity)
    # What counts is the file that ships: read it back and prove that one too.
    served = load_package(folder)
    parities = [prove_parity(trained.model, served.model, normalised, tolerance)]
    with torch.no_grad():
        expected = torch.cat([trained.model(clip) for clip in normalised])
    card = describe(trained, exported)
    reference: float | None = None
    for form, dtype in config.programs():
        path = write_program(folder, served, form, dtype, card)
        program = open_program(path, params.train.threads)
        allowed = tolerance if dtype == "fp32" else None
        labels = {"form": form, "dtype": dtype, "file": path.name}
        parity = prove_program(expected, program, clips, allowed, **labels)
        if dtype != "fp32":
            if reference is None:
                reference = _top1(PixelModel(trained), views, config)
            parity = _with_accuracy(parity, _top1(program, views, config), reference, views, config)
        parities.append(parity)
    write_json(folder / "parity.json", [vars(parity) for parity in parities])
    return served, parities


def _normalised(trained: TrainedModel, clips: Tensor) -> Tensor:
    return to_input(clips, trained.backbone.mean, trained.backbone.std)


def _accuracy_clips(views: ViewSet, config: ExportConfig) -> list[int]:
    count = min(config.accuracy_clips or len(views), len(views))
    return [i * len(views) // count for i in range(count)]


@torch.no_grad()
def _top1(program: Callable[[Tensor], Tensor], views: ViewSet, config: ExportConfig) -> float:
    chosen = _accuracy_clips(views, config)
    correct = 0
    for batch in view_loader(torch.utils.data.Subset(views, chosen), 8):
        correct += int((program(batch["video"][:, 0]).argmax(1) == batch["label"]).sum())
    return correct / len(chosen)


def _with_accuracy(
    parity: Parity, top1: float, reference: float, views: ViewSet, config: ExportConfig
) -> Parity:
    if reference - top1 > config.max_top1_loss:
        raise VidpipeError(
            f"export: {parity.file} has top-1 {top1:.4f}, the trained model {reference:.4f}; "
            f"export.max_top1_loss allows {config.max_top1_loss:g}; leave {parity.dtype} out of "
            "export.precisions, or raise it"
        )
    clips = len(_accuracy_clips(views, config))
    return replace(parity, top1=top1, top1_fp32=reference, accuracy_clips=clips)


def _facts(params: Params, method: str, workspace: Workspace, trained: TrainedModel) -> Facts:
    def known(path: Path) -> dict[str, Any]:
        return dict(read_json(path)) if path.exists() else {}

    root = params.data.store or workspace.store
    rows = read_manifest(root, ("split", "status", "reason")).rows
    usable, bad = rows[rows.status == "ok"], rows[rows.status != "ok"]
    return Facts(
        training=known(workspace.adapter(method) / "config.json").get("training", {}),
        evaluation=known(workspace.result(method, "eval.json")),
        cost=known(workspace.result(method, "train.json")).get("cost", {}),
        clips={str(k): int(v) for k, v in usable.split.value_counts().sort_index().items()},
        quarantined={str(k): int(v) for k, v in bad.reason.value_counts().sort_index().items()},
        weights_licence=weights_licence(trained),
    )


def _by_file(parities: list[Parity]) -> dict[str, float]:
    found = {}
    for parity in parities:
        name = f"{parity.format}.{parity.dtype}"
        found[f"parity.{name}.max_abs_difference"] = parity.max_abs_difference
        found[f"parity.{name}.top1_agreement"] = parity.top1_agreement
        if parity.top1 is not None:
            found[f"parity.{name}.top1"] = parity.top1
    return found


def _register(
    tracked: TrackedRun,
    package: Path,
    clips: Tensor,
    trained: TrainedModel,
    config: ExportConfig,
    method: str,
) -> str | None:
    example = clips.repeat(2, 1, 1, 1, 1)[:2].numpy().astype(np.uint8)
    extra = ["open_clip_torch"] if trained.backbone.config.source == "open_clip" else []
    return tracked.model(
        package, folder_hash(package), example, len(trained.classes), config, method, extra
    )


def _plain(trained: TrainedModel) -> VideoModel:
    """The plain image model run over the same frames: what zero extra cost would be."""
    frames = trained.sampling.num_frames
    config = LinearProbeConfig.model_validate({})
    classes = len(trained.classes)
    return build_method("linear_probe", trained.backbone.vit, classes, frames, config).eval()
