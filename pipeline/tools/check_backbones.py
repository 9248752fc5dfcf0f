"""`vidpipe backbones --check`: what the promise of features costs to believe.

Each model of timm that loads is made shallow and narrow, with random weights everywhere, and the feature
of a clip of equal frames compared with timm's own `forward_head(forward_features(x), pre_logits=True)`.
What is refused is refused by its name or by its structure, with a reason.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
from rich.table import Table
from timm.models import NaFlexVit
from torch import nn

from pipeline.infra.console import output, progress
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.listing import of_other_family
from vidpipe.backbones.zoo import one_size, supported
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, build_method

NARROW: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 4}
SWIN: dict[str, Any] = {"depths": (2, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4)}
SAPIENS_HEADS = {"base": 12, "large": 16, "huge": 16, "giant": 24, "5b": 32}
PARTS = ("layers", "blocks", "norm", "fc_norm", "attn_pool", "norm_pre")
OPTIONS = ("global_pool", "no_embed_class", "pool_include_prefix", "num_prefix_tokens")
NAFLEX = (
    "pos_embed_type",
    "pos_embed_interp_mode",
    "pos_embed_ar_preserving",
    "pos_embed_antialias",
)
FRAMES = 2


@dataclass(frozen=True)
class Verdict:
    """On one name of timm."""

    name: str
    kind: str
    """timm's class, or, where nothing was built, its file."""
    reason: str | None
    """Why it is refused; None: it loads."""
    error: float | None
    """Relative error of the feature; None where it is refused."""


def run(pattern: str, as_json: bool) -> None:
    """Print counts by class and reason, and the worst error. Raises VidpipeError where none matches."""
    names = [name for name in timm.list_models() if fnmatchcase(name, pattern)]
    if not names:
        raise VidpipeError(f"{pattern}: no model of timm has such a name")
    found = []
    with progress() as bar:
        task = bar.add_task("backbones", total=len(names), info="")
        for verdict in check(names):
            found.append(verdict)
            bar.advance(task)
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=2))
        return
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in found:
        by_kind[verdict.kind].append(verdict)
    table = Table(pad_edge=False)
    for title in ("class of timm", "load", "refused", "worst error", "of"):
        words = title in ("class of timm", "of")
        table.add_column(title, justify="left" if words else "right")
    for kind, own in sorted(by_kind.items(), key=lambda item: (-_loading(item[1]), item[0])):
        if not _loading(own):
            continue  # the reasons below name it
        worst = max(
            (v for v in own if v.error is not None), key=lambda v: v.error or 0, default=None
        )
        numbers = ("", "") if worst is None else (f"{worst.error:.1e}", worst.name)
        table.add_row(kind, f"{_loading(own)}", f"{len(own) - _loading(own)}", *numbers)
    screen = output()
    screen.print(table)
    reasons = Counter(f"{v.kind} {v.reason}" for v in found if v.reason is not None)
    for reason, count in reasons.most_common():
        screen.print(f"{count:5} {reason}")
    errors = [verdict.error for verdict in found if verdict.error is not None]
    worst_error = f"; worst relative error of a feature {max(errors):.1e}" if errors else ""
    screen.print(f"{len(errors)} load, {len(found) - len(errors)} are refused{worst_error}")


def _loading(verdicts: list[Verdict]) -> int:
    return sum(verdict.reason is None for verdict in verdicts)


def check(names: Iterable[str]) -> Iterator[Verdict]:
    """A verdict a name. Models that differ in sizes alone are computed once."""
    errors: dict[str, float] = {}
    for name in names:
        if (reason := of_other_family(name)) is not None:
            yield Verdict(
                name, timm.model_entrypoint(name).__module__.rpartition(".")[2], reason, None
            )
            continue
        with _quiet():
            with torch.device("meta"):
                model = reduced(name)
            kind, own = type(model).__name__, structure(model)
            try:
                supported(model, name, None)
            except VidpipeError as error:
                reason = str(error).partition(f"{name} ")[2].partition("; ")[0]
                yield Verdict(name, kind, reason, None)
                continue
            if own not in errors:
                errors[own] = feature_error(name)
        yield Verdict(name, kind, None, errors[own])


def reduced(name: str, **options: Any) -> nn.Module:
    """`name` with two narrow blocks, of a Swin five; a convolutional stem keeps its size."""
    if "mci" in name:  # its stem makes tokens of the full width
        small: dict[str, Any] = {"depth": 2}
    elif "sapiens2" in name:  # which heads share their keys depends on the depth
        small = {"embed_dim": 8 * SAPIENS_HEADS[name.split("_")[1]]}
    else:
        small = SWIN if "swin" in name else NARROW
    return timm.create_model(name, num_classes=0, **small, **options)


def structure(model: nn.Module) -> str:
    """The same for models that differ in sizes alone, those of tokens apart."""
    own: Any = model
    parts = [re.sub(r"\d+", "", repr(getattr(own, part, None))) for part in PARTS]
    options = [getattr(own, option, None) for option in OPTIONS]
    embedding = type(getattr(own, "patch_embed", None))
    if isinstance(own, NaFlexVit):
        options += [getattr(own.embeds, option) for option in NAFLEX]
    tokens = (getattr(own, "cls_token", None) is None, type(getattr(own, "rope", None)))
    return f"{type(model)} {embedding} {options} {tokens} {parts}"


@torch.no_grad()
def feature_error(name: str) -> float:
    """Relative error of the feature of a clip of equal frames against timm's own forward, by the weights
    of timm's model as a file has them."""
    patch = re.search(r"patch(\d+)", name)
    size = 128 if "swin" in name else 4 * int(patch[1] if patch else 16)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        zoos: Any = reduced(name, img_size=size).eval()
    for parameter in zoos.parameters():  # what starts at zero would be read by no one
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    ours = supported(reduced(name, img_size=size, **one_size(name)), name, size)
    fit_state(ours, zoos.state_dict(), name)
    model: Any = build_method("linear_probe", ours, 1, FRAMES, METHODS["linear_probe"].Config())
    model.head = nn.Identity()
    x = torch.randn(2, 3, size, size, generator=generator)
    expected = zoos.forward_head(zoos.forward_features(x), pre_logits=True)
    found = model.eval()(x[:, :, None].expand(-1, -1, FRAMES, -1, -1))
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _quiet() -> Iterator[None]:
    """timm warns of models that have another name by now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
