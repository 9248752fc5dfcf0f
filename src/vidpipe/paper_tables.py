"""The papers' printed costs against ours, row by row (assets/paper_tables.yaml)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from torch import nn

from vidpipe.config.yaml_text import parse_yaml, read_yaml_file
from vidpipe.methods.config import CONFIGS
from vidpipe.methods.registry import build_method
from vidpipe.profile import cost_of, macs_by_kind, parameters

ROWS = Path(__file__).parent / "assets" / "paper_tables.yaml"
BACKBONES = {
    "ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
    "Swin-B": "swin_base_patch4_window7_224",
}
SIZE, VIEWS = 224, 3
TOLERANCE = 0.005
"""Of the GFLOPs: AIM's 16 and 32 frames are printed as multiples of its 8."""


@dataclass(frozen=True)
class Row:
    """One printed number. `status`: exact, truncated, within 0.5 %, derived, off, or known off."""

    paper: str
    table: str
    name: str
    backbone: str
    frames: int
    metric: str
    value: float | None
    ours: float
    status: str
    why: str | None

    @property
    def reproduced(self) -> bool:
        return "off" not in self.status


@cache
def _image_model(backbone: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(BACKBONES[backbone], num_classes=0)
    return model


@lru_cache(maxsize=2048)
def _costs(
    backbone: str, method: str, options: str, frames: int, classes: int, computed: bool
) -> dict[str, float]:
    """What a row can ask of one configuration, in millions and, where `computed`, in GMACs of all views:
    these take a pass through the model, and most rows print parameters alone."""
    config = CONFIGS[method].model_validate(parse_yaml(options, "options"))
    with torch.device("meta"):
        model = build_method(method, deepcopy(_image_model(backbone)), classes, frames, config)
        inference = model.merge() if model.not_mergeable is None else model
    products, norms = macs_by_kind(inference, SIZE) if computed else (math.nan, math.nan)
    counted = cost_of(model, inference, (products + norms) / 1e9)
    return {
        "params": parameters(inference) / 1e6,
        "tunable_params": counted.tunable / 1e6,
        "tunable_without_head": counted.tunable_without_head / 1e6,
        "new_params": counted.new_at_inference / 1e6,
        "gflops": VIEWS * counted.gmacs,
        "gflops_without_norms": VIEWS * products / 1e9,
    }


def recompute(rows: list[dict[str, Any]] | None = None) -> Iterator[Row]:
    """Every row with our number, in the file's order; models live on the meta device."""
    for row in read_rows() if rows is None else rows:
        metric, whole = row["metric"], 0.0
        computed = "gflops" in metric
        own = _costs(
            row["backbone"],
            row["method"],
            yaml.safe_dump(row["options"]),
            row["frames"],
            row["classes"],
            computed,
        )
        gflops = own["gflops" if row.get("norms", True) else "gflops_without_norms"]
        if metric == "gflops":
            ours = whole = gflops
        elif metric == "extra_gflops":
            probe = _costs(
                row["backbone"], "linear_probe", "{}", row["frames"], row["classes"], True
            )
            ours, whole = gflops - probe["gflops"], gflops
        else:
            ours = own[metric]
        why = row.get("not_reproduced")
        status = _status(row["value"], row.get("derived"), ours, whole)
        if why is not None and status == "off":
            status = "known off"
        yield Row(
            row["paper"],
            row["table"],
            row["name"],
            row["backbone"],
            row["frames"],
            metric,
            row["value"],
            ours,
            status,
            why,
        )


def _status(printed: float | None, derived: float | None, ours: float, whole: float) -> str:
    """Compare to the printed digits, and GFLOPs (tables of multiples) also to TOLERANCE of `whole`."""
    if printed is None:
        return "derived" if derived is not None and abs(ours - derived) < 0.01 else "off"
    digits = len(str(printed).partition(".")[2]) if isinstance(printed, float) else 0
    if round(ours, digits) == printed:
        return "exact"
    if math.floor(ours * 10**digits) / 10**digits == printed:
        return "truncated"
    if abs(ours - printed) <= TOLERANCE * whole:
        return "within 0.5 %"
    return "off"


def read_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_yaml_file(ROWS)
    return rows
