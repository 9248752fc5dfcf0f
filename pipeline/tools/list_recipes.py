"""`vidpipe recipes`: what each recipe costs and what the paper reports, before any data is there."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, astuple, dataclass
from functools import cache
from typing import Any, cast

import torch
from rich.table import Table
from torch import nn

from pipeline.infra.console import output
from pipeline.infra.recipes import Dataset, Recipe, list_recipes, list_studies, load_recipe
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.input_card import completed
from vidpipe.backbones.swin import SWINS
from vidpipe.backbones.zoo import architecture
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.evaluation.config import EvaluateConfig
from vidpipe.image_size import Size
from vidpipe.methods.config import CONFIGS, MethodConfig
from vidpipe.methods.registry import build_method
from vidpipe.profile import macs_by_kind, parameters, training_gmacs
from vidpipe.training.config import TrainConfig


@dataclass(frozen=True)
class Data:
    classes: int
    clips: int
    """Of the training split, about, as the papers give them; of one split of three. AVA: key frames."""


DATA: dict[Dataset, Data] = {
    "K400": Data(400, 240_000),
    "K700": Data(700, 530_000),
    "SSv2": Data(174, 169_000),
    "Diving48": Data(48, 15_000),
    "UCF101": Data(101, 9_500),
    "HMDB51": Data(51, 3_500),
    "AVA2.2": Data(80, 184_000),
}
PEAK_TFLOPS, UTILISATION = 312, 0.4
ASSUMPTION = (
    f"GPU h: training FLOPs (forward and backward, counted) at {UTILISATION:.0%} of an A100's "
    f"{PEAK_TFLOPS} bf16 TFLOPS, without evaluation. GFLOPs: multiply-accumulates of all views, as the "
    "papers count, with LayerNorms (AIM's tables leave them out). UCF101, HMDB51: one split of three."
)


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    method: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    pretrain: str | None = None
    frames: int | None = None
    views: str | None = None
    """Temporal clips x spatial crops."""
    tunable_m: float | None = None
    tunable_without_head_m: float | None = None
    gflops: float | None = None
    gflops_without_norms: float | None = None
    clip_epochs: int | None = None
    gpu_hours: float | None = None
    map: float | None = None
    top1: float | None = None
    table: str | None = None
    starts_from: str | None = None


@dataclass(frozen=True)
class Costs:
    tunable: float
    tunable_without_head: float
    products: float
    """Multiply-accumulates of one view; LayerNorms apart, at 5 an element."""
    norms: float
    step: float
    """Multiply-accumulates of one clip, forward and backward."""


@cache
def costs(
    method: str,
    options: str,
    backbone: str,
    size: Size,
    frames: int,
    classes: int,
    every_block: bool = False,
) -> Costs:
    """What a model costs, counted on the meta device. `options` and `backbone` are JSON.

    The blocks of a ViT cost the same where all are adapted alike, so three stand for all of them:
    the list of 65 recipes takes seconds in place of minutes. `every_block` builds them all.
    """
    config = CONFIGS[method].model_validate_json(options)

    def measure(depth: int | None) -> Costs:
        with torch.device("meta"):
            image_model = copy.deepcopy(_image_model(backbone, size, depth))
            model = build_method(method, image_model, classes, frames, config)
            inference = model.merge() if model.not_mergeable is None else model
            products, norms = macs_by_kind(inference, size)
            step = 1e9 * training_gmacs(model, size)
        tunable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Costs(tunable, tunable - parameters(model.head), products, norms, step)

    whole = _image_model(backbone, size, None)
    if every_block or isinstance(whole, SWINS) or not _uniform(config):
        return measure(None)
    # Neither the first, below which nothing is trained, so that parts of its backward pass fall away,
    # nor the last, of which the class token alone is read.
    two, three = astuple(measure(2)), astuple(measure(3))
    rest = len(cast(Any, whole).blocks) - 2
    return Costs(*(a + rest * (b - a) for a, b in zip(two, three, strict=True)))


@cache
def _image_model(backbone: str, size: int, depth: int | None) -> nn.Module:
    """The backbone on the meta device, cached: copy it before changing it. `depth`: only so many first
    blocks of a ViT."""
    if depth is None:
        with torch.device("meta"):
            return architecture(BackboneConfig.model_validate_json(backbone), size)
    model: Any = copy.copy(_image_model(backbone, size, None))
    model._modules = {**model._modules, "blocks": model.blocks[:depth]}
    return model


def _uniform(config: MethodConfig) -> bool:
    """Whether all blocks are adapted, and alike."""
    options = config.model_dump()
    offsets = options.get("head_offsets") or ()
    return options.get("blocks") is None and not any(isinstance(dt, tuple) for dt in offsets)


def row(recipe: Recipe) -> Row:
    """Costs of a recipe that stands for a row of a paper, or of ours; others have a title only."""
    subject, overlay = recipe.expects or recipe.ours, recipe.overlay
    if subject is None or len(recipe.methods) != 1:
        return Row(recipe.name, recipe.title)
    (method,) = recipe.methods
    data = DATA[subject.dataset]
    sampling = SamplingConfig.model_validate(overlay["sampling"])
    train = TrainConfig.model_validate(overlay["train"])
    views = EvaluateConfig.model_validate(overlay["evaluate"])
    backbone = BackboneConfig.model_validate(overlay["backbone"])
    transform = completed(TransformConfig.model_validate(overlay["transform"]), backbone)
    own = costs(
        method,
        CONFIGS[method].model_validate(overlay["methods"][method]).model_dump_json(),
        backbone.model_dump_json(),
        InputForm.of(transform).size,
        sampling.num_frames,
        data.classes,
    )
    count = views.temporal_clips * views.spatial_crops
    clips = train.steps * train.batch_size if train.steps else train.epochs * data.clips
    return Row(
        name=recipe.name,
        title=recipe.title,
        method=method,
        dataset=subject.dataset,
        backbone=subject.backbone,
        pretrain=subject.pretrain,
        frames=sampling.num_frames,
        views=f"{views.temporal_clips}x{views.spatial_crops}",
        tunable_m=own.tunable / 1e6,
        tunable_without_head_m=own.tunable_without_head / 1e6,
        gflops=count * (own.products + own.norms) / 1e9,
        gflops_without_norms=count * own.products / 1e9,
        clip_epochs=clips,
        gpu_hours=2 * own.step * clips / (UTILISATION * PEAK_TFLOPS * 1e12) / 3600,
        top1=recipe.expects.top1 if recipe.expects else None,
        map=recipe.expects.map if recipe.expects else None,
        table=f"{recipe.expects.paper} {recipe.expects.table}" if recipe.expects else "ours",
        starts_from=recipe.starts_from,
    )


def rows() -> list[Row]:
    return [row(load_recipe(name)) for name, _ in list_recipes()]


def run(as_json: bool) -> None:
    """Print the table (standard output: it is what was asked for), or JSON."""
    found = rows()
    if as_json:
        document: dict[str, Any] = {
            "assumption": ASSUMPTION,
            "peak_tflops": PEAK_TFLOPS,
            "utilisation": UTILISATION,
            "data": {name: asdict(data) for name, data in DATA.items()},
            "recipes": [asdict(row) for row in found],
            "studies": dict(list_studies()),
        }
        print(json.dumps(document, indent=2))
        return
    console = output(width=180)
    table = Table(caption=ASSUMPTION, caption_justify="left", pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for name in ("data", "backbone", "pre-training"):
        table.add_column(name)
    for name in ("frames", "views", "tunable M", "GFLOPs", "clips trained", "GPU h", "top1 or mAP"):
        table.add_column(name, justify="right")
    table.add_column("table")
    for item in found:
        if item.dataset is None:
            continue
        table.add_row(
            item.name,
            item.dataset,
            item.backbone,
            item.pretrain,
            str(item.frames),
            item.views,
            f"{cast(float, item.tunable_m):.2f}",
            f"{cast(float, item.gflops):,.0f}",
            f"{cast(int, item.clip_epochs) / 1e6:.3g} M",
            f"{cast(float, item.gpu_hours):,.3g}",
            str(item.top1 or item.map or "-"),
            item.table,
        )
    console.print(table)
    for item in found:
        if item.dataset is None:
            console.print(f"{item.name}: {item.title}")
    for name, title in list_studies():
        console.print(f"{name}: {title}")
