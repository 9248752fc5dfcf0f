"""Stage `export`: the deployable model, proven equal to the trained one on real clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pipeline.infra.console import console
from pipeline.infra.mlflow.registered_model import Exported
from pipeline.infra.mlflow.tracking import TrackedRun, tracked_run
from pipeline.infra.model_facts import identity_of
from pipeline.infra.workspace import Workspace, folder_hash, open_store
from vidpipe.config.identity import config_hash
from vidpipe.cpu import use_cpu
from vidpipe.data.dataset import ViewSet, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.compare import require_same_classes, require_same_task
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
from vidpipe.tasks.base import Task, more_inputs
from vidpipe.tasks.clips import open_clips, open_views
from vidpipe.trained.adapter import load_adapter
from vidpipe.trained.package import load_package
from vidpipe.trained.trained_model import TrainedModel
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
    require_same_task(str(adapter), trained.task.name, str(store.root), store.task)
    require_same_classes(str(adapter), trained.classes, str(store.root), store.classes)
    own = open_clips(store, "val", trained.classes)
    views = open_views(own, trained.sampling, trained.transform)
    count = min(params.export.parity_clips, len(views))
    # Spread over the split: it is sorted by path, so its first clips are all of one class.
    chosen = [round(i * (len(views) - 1) / max(1, count - 1)) for i in range(count)]
    samples = [views[i] for i in chosen]
    clips = torch.stack([sample["video"][0] for sample in samples])
    boxes = None
    if "boxes" in trained.task.inputs:
        boxes = torch.stack([sample["boxes"] for sample in samples])

    identity = config_hash(params.export, folder_hash(adapter))
    model = identity_of(adapter)
    with tracked_run(params.tracking, "export", method, identity, model) as tracked:
        tracked.params({"export": params.export.model_dump(mode="json"), "method": method})
        package = workspace.package(method)
        package.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".package.", dir=package.parent) as scratch:
            candidate = Path(scratch) / "package"
            served, parities = _write(candidate, trained, clips, boxes, views, params)
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
        tracked.row(metrics=speed)
        for name in ("parity.json", "MODEL_CARD.md"):
            tracked.artifact(package / name)
        for file in _evaluation(workspace.evaluation(method), folder_hash(adapter)):
            tracked.artifact(file, "evaluation")
        version = _register(tracked, package, trained, params.export, facts)
        if version is not None:
            tracked.row(tags={"vidpipe.registered_version": version})
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
    folder: Path,
    trained: TrainedModel,
    clips: Tensor,
    boxes: Tensor | None,
    views: ViewSet,
    params: Params,
) -> tuple[TrainedModel, list[Parity]]:
    """The package without its card, each file read back and proven; the model that was read back."""
    config, tolerance = params.export, params.export.tolerance
    exported = inference_model(trained.model)
    normalised = [_normalised(trained, clip[None]) for clip in clips]
    own_boxes = () if boxes is None else boxes.split(1)
    prove = partial(
        prove_parity,
        clips=normalised,
        tolerance=tolerance,
        boxes=own_boxes,
        task=trained.task,
    )
    parity = prove(trained.model, exported)
    save_package(folder, trained, exported, parity)
    # What counts is the file that ships: read it back and prove that one too.
    served = load_package(folder)
    parities = [prove(trained.model, served.model)]
    whole = PixelModel(trained)
    with torch.no_grad():
        each = zip(clips.split(1), own_boxes) if own_boxes else ((clip,) for clip in clips.split(1))
        expected = torch.cat([whole(*inputs) for inputs in each])
    card = describe(trained, exported)
    reference: float | None = None
    for form, dtype in config.programs():
        path = write_program(folder, served, form, dtype, card)
        program = open_program(path, params.train.threads)
        allowed = tolerance if dtype == "fp32" else None
        labels = {"form": form, "dtype": dtype, "file": path.name}
        parity = prove_program(expected, program, clips, allowed, boxes=boxes, **labels)
        if dtype != "fp32":
            if reference is None:
                reference = _score(PixelModel(trained), trained.task, views, config)
            score = _score(program, trained.task, views, config)
            parity = _with_accuracy(parity, score, reference, trained.task, views, config)
        parities.append(parity)
    write_json(folder / "parity.json", [vars(parity) for parity in parities])
    return served, parities


def _normalised(trained: TrainedModel, clips: Tensor) -> Tensor:
    return to_input(clips, trained.backbone.mean, trained.backbone.std)


def _accuracy_clips(views: ViewSet, config: ExportConfig) -> list[int]:
    count = min(config.accuracy_clips or len(views), len(views))
    return [i * len(views) // count for i in range(count)]


@torch.no_grad()
def _score(
    program: Callable[..., Tensor], task: Task, views: ViewSet, config: ExportConfig
) -> float:
    chosen = torch.utils.data.Subset(views, _accuracy_clips(views, config))
    here = torch.device("cpu")
    found = [
        (program(batch["video"][:, 0], *more_inputs(batch, here)), batch["label"])
        for batch in view_loader(chosen, 8)
    ]
    return task.score_of(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _with_accuracy(
    parity: Parity,
    top1: float,
    reference: float,
    task: Task,
    views: ViewSet,
    config: ExportConfig,
) -> Parity:
    if reference - top1 > config.max_top1_loss:
        raise VidpipeError(
            f"export: {parity.file} has {task.score_name} {top1:.4f}, the trained model "
            f"{reference:.4f}; export.max_top1_loss allows {config.max_top1_loss:g}; "
            f"leave {parity.dtype} out of export.precisions, or raise it"
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


def _evaluation(folder: Path, adapter: str) -> list[Path]:
    """What `vidpipe promote` compares versions by; nothing where another adapter was evaluated."""
    card, table = folder / "config.json", folder / "predictions.parquet"
    if not (card.exists() and table.exists() and read_json(card).get("adapter_sha256") == adapter):
        return []
    timeline = folder / "timeline.parquet"
    return [card, table, *([timeline] if timeline.exists() else [])]


def _register(
    tracked: TrackedRun, package: Path, trained: TrainedModel, config: ExportConfig, facts: Facts
) -> str | None:
    extra = ("open_clip_torch",) if trained.backbone.config.source == "open_clip" else ()
    told = {
        "method": tracked.method,
        "backbone": trained.backbone.config.name,
        "identity": tracked.model,
        "top1": facts.evaluation.get("top1"),
        "tunable": facts.cost.get("tunable"),
    }
    tags = {f"vidpipe.{key}": str(value) for key, value in told.items() if value is not None}
    name, alias = config.register_as, config.alias
    return tracked.exported(
        Exported(package, folder_hash(package), tracked.method, name, alias, extra, tags)
    )


def _plain(trained: TrainedModel) -> VideoModel:
    """The plain image model run over the same frames: what zero extra cost would be."""
    frames = trained.sampling.num_frames
    config = LinearProbeConfig.model_validate({})
    classes = len(trained.classes)
    return build_method("linear_probe", trained.backbone.vit, classes, frames, config).eval()
