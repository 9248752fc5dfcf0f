"""`vidpipe profile`: what a configuration costs before anything is trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from pipeline.infra.console import console
from vidpipe.backbones.input_card import completed
from vidpipe.backbones.zoo import architecture
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.image_size import words
from vidpipe.methods.registry import build_method
from vidpipe.paper_tables import recompute
from vidpipe.params import Params
from vidpipe.profile import cost, memory, modules


def run(params: Params, method: str, classes: int, as_json: bool) -> None:
    """Print parameters by module, GMACs and memory of `method`; nothing is loaded or computed."""
    transform = completed(params.transform, params.backbone)
    size, frames = InputForm.of(transform).size, params.sampling.num_frames
    with torch.device("meta"):
        backbone = architecture(params.backbone, size)
        model = build_method(method, backbone, classes, frames, params.method(method))
        counted, needed = cost(model, size), memory(model, size)
    views = params.evaluate.temporal_clips * params.evaluate.spatial_crops
    result: dict[str, Any] = {
        "method": method,
        "backbone": params.backbone.name,
        "num_frames": frames,
        "size": size,
        "num_classes": classes,
        "parameters": {
            "total": counted.total,
            "tunable": counted.tunable,
            "tunable_without_head": counted.tunable_without_head,
            "new_at_inference": counted.new_at_inference,
        },
        "gflops_per_view": counted.gmacs,
        "views": views,
        "gflops_all_views": counted.gmacs * views,
        "training_memory_bytes": {
            **asdict(needed),
            "batch": params.train.batch_size,
            "total": needed.weights
            + needed.optimizer
            + params.train.batch_size * needed.activations_per_clip,
        },
        "modules": [asdict(row) for row in modules(model)],
    }
    if as_json:
        print(json.dumps(result, indent=2))
        return
    table = Table(title=f"{method} on {params.backbone.name}, {frames} frames of {words(size)} px")
    table.add_column("module")
    table.add_column("parameters", justify="right")
    table.add_column("tunable", justify="right")
    for row in result["modules"]:
        table.add_row(row["name"], f"{row['total']:,}", f"{row['tunable']:,}")
    table.add_section()
    table.add_row("total", f"{counted.total:,}", f"{counted.tunable:,}")
    table.add_row("without head", "", f"{counted.tunable_without_head:,}")
    table.add_row("new at inference", f"{counted.new_at_inference:,}", "")
    console.print(table)
    console.print(
        f"{counted.gmacs:.4g} GFLOPs (multiply-accumulates) a view, "
        f"{counted.gmacs * views:.4g} for {views} views"
    )
    gib = 2**30
    console.print(
        f"training memory, fp32, estimated: {needed.weights / gib:.3g} GiB weights + "
        f"{needed.optimizer / gib:.3g} optimizer + {needed.activations_per_clip / gib:.3g} "
        f"for each clip of the batch of {params.train.batch_size}"
    )


def paper_tables(as_json: bool) -> None:
    """Recompute the papers' tables; raises VidpipeError when a reproducible row is not reproduced."""
    rows = []
    table = Table(title="the papers' costs and ours (millions; GFLOPs = MACs of 3 views)")
    for column in ("paper", "table", "method", "backbone", "T", "metric"):
        table.add_column(column)
    for column in ("printed", "ours"):
        table.add_column(column, justify="right")
    table.add_column("status")
    for row in recompute():
        rows.append(row)
        table.add_row(
            row.paper,
            row.table,
            row.name,
            row.backbone,
            str(row.frames),
            row.metric,
            "-" if row.value is None else str(row.value),
            f"{row.ours:.2f}",
            row.status,
            style="red" if row.status == "off" else None,
        )
    off = [row for row in rows if row.status == "off"]
    known = [row for row in rows if row.status == "known off"]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        console.print(table)
        for row in known:
            console.print(f"not reproduced: {row.name}, {row.metric} {row.value}: {row.why}")
        console.print(
            f"{len(rows) - len(off) - len(known)} of {len(rows)} rows reproduced, "
            f"{len(known)} known not to be, {len(off)} failed"
        )
    if off:
        names = "; ".join(f"{r.name} {r.metric} {r.value} (ours {r.ours:.2f})" for r in off[:3])
        raise VidpipeError(f"profile: {len(off)} rows of the papers are not reproduced: {names}")
