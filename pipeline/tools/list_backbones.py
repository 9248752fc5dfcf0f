"""`vidpipe backbones`: the image models that load, what they cost, and why others do not."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import timm
import torch
from rich.table import Table
from torch import nn

from pipeline.infra.console import output, progress
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.families import view_of
from vidpipe.backbones.input_card import input_card
from vidpipe.backbones.listing import list_backbones
from vidpipe.backbones.swin import SWINS
from vidpipe.backbones.zoo import architecture
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, words
from vidpipe.profile import gmacs, parameters

OPEN_CLIP = "open_clip:"
SHOWN = 20
"""Refused names that are printed with their reason."""
NOTE = (
    "px: input the zoo made it for. GFLOPs: multiply-accumulates of one picture, with LayerNorms. "
    "licence: of the weights that timm lists first for the name; for others see their source."
)


@dataclass(frozen=True)
class Row:
    """What is known of one name. Numbers are None where it does not load."""

    name: str
    loads: bool
    size: Size | None = None
    params_m: float | None = None
    gflops: float | None = None
    pooling: str | None = None
    licence: str | None = None
    reason: str | None = None
    """Why it is refused."""


def run(pattern: str, as_json: bool) -> None:
    """Print a row for each name that matches. Raises VidpipeError where none does."""
    found = rows(pattern)
    if as_json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return
    table = Table(caption=NOTE, caption_justify="left", pad_edge=False)
    for title in ("backbone", "px", "M", "GFLOPs", "pooling", "licence"):
        table.add_column(title, justify="right" if title in ("px", "M", "GFLOPs") else "left")
    for row in found:
        if row.loads:
            assert row.size is not None
            numbers = (words(row.size), f"{row.params_m:.1f}", f"{row.gflops:.2f}")
            table.add_row(row.name, *numbers, row.pooling, row.licence or "-")
    screen = output()
    if table.rows:
        screen.print(table)
    refused = [row for row in found if not row.loads]
    for row in refused[:SHOWN]:
        screen.print(f"refused: {row.reason}")
    if len(refused) > SHOWN:
        screen.print(f"... and {len(refused) - SHOWN} more; a narrower pattern or --json has them:")
        for reason, count in Counter(map(reason_alone, refused)).most_common():
            screen.print(f"{count:5} {reason}")
    screen.print(f"{len(found) - len(refused)} load, {len(refused)} are refused")


def reason_alone(row: Row) -> str:
    """Why it is refused, without its name and the nearest that works: the same for a family."""
    name = row.name.removeprefix(OPEN_CLIP)
    return str(row.reason).partition(name)[2].partition("; ")[0].strip()


def rows(pattern: str) -> list[Row]:
    """A row a name of timm or open_clip that `pattern` matches: first those that load."""
    loading = list_backbones(pattern)
    others = sorted(set(_all_names(pattern)) - set(loading))
    if not loading and not others:
        raise VidpipeError(
            f"{pattern}: no model of timm or open_clip has such a name; a pattern is one of file names, "
            "such as '*clip*'"
        )
    found = []
    with progress() as bar, _quiet():
        task = bar.add_task("backbones", total=len(loading) + len(others), info="")
        for name in (*loading, *others):
            found.append(describe(name))
            bar.advance(task)
    return sorted(found, key=lambda row: not row.loads)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip says of each tower that it is built without weights."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def describe(name: str) -> Row:
    """Build `name` on the meta device, where no weight is allocated, and count."""
    source = "open_clip" if name.startswith(OPEN_CLIP) else "timm"
    config = BackboneConfig(
        source=cast(Any, source), name=name.removeprefix(OPEN_CLIP), weights="none"
    )
    try:
        with torch.device("meta"):
            size = input_card(config).size
            model = architecture(config, size).requires_grad_(False)
    except VidpipeError as error:
        return Row(name, loads=False, reason=str(error).removeprefix("backbone.name: "))
    card = getattr(model, "pretrained_cfg", None) or {}
    return Row(
        name,
        loads=True,
        size=size,
        params_m=parameters(model) / 1e6,
        gflops=gmacs(model, size, 0),
        pooling=pooling(model),
        licence=card.get("license"),
    )


def pooling(model: nn.Module) -> str:
    """What the feature of a picture is made of, in words."""
    if isinstance(model, SWINS):
        return "mean of patches"
    view = view_of(model)
    if view.attn_pool is not None:
        return "attention (map)"
    if view.reads == "prefix":
        return "class token"
    return f"{view.vit.global_pool} of patches"


def _all_names(pattern: str) -> list[str]:
    names = [name for name in timm.list_models() if fnmatchcase(name, pattern)]
    try:
        import open_clip
    except ModuleNotFoundError:
        return names
    towers = (OPEN_CLIP + name for name in open_clip.list_models())
    return names + [name for name in towers if fnmatchcase(name, pattern)]
