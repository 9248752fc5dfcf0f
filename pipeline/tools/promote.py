"""`vidpipe promote`: the registered model in use changes by evidence, and back by one command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.infra.mlflow.promotion import PREVIOUS, Registry, Version
from pipeline.tools.compare import read_evaluation
from vidpipe.errors import VidpipeError
from vidpipe.evaluation.own_score import own_difference
from vidpipe.export.config import CHAMPION
from vidpipe.files import read_json
from vidpipe.params import Params
from vidpipe.study.statistics import bounds

EVIDENCE = "vidpipe.evidence"
"""Tag of a version that was promoted: what for."""
VIEWS = ("temporal_clips", "spatial_crops", "average")
"""Of `evaluate`: what has to be the same in both evaluations."""


def promote(params: Params, method: str, number: str | None = None) -> str:
    """Make a version of `method` the champion, if it is not worse on the same clips; returns a line.

    Not worse: the low end of the paired 95 % interval, over groups, of its task's own score
    (`own_difference`) minus the champion's is above -`export.margin`. `number`: a version; None: the one
    that was exported last.
    Raises VidpipeError, in one line with the numbers, where it is worse or that cannot be told.
    """
    registry = _registry(params, method)
    if number is None:
        candidate = registry.with_alias(params.export.alias)
        wanted = f"alias {params.export.alias}"
    else:
        candidate, wanted = registry.numbered(number), f"version {number}"
    if candidate is None:
        raise VidpipeError(
            f"{registry.model}: no {wanted}; run `vidpipe export --method {method}` first"
        )
    champion = registry.with_alias(CHAMPION)
    if champion is None:
        registry.move(CHAMPION, candidate, {EVIDENCE: "the first"})
        return f"{registry.model}: {candidate} is the first {CHAMPION}"
    if champion.number == candidate.number:
        return f"{registry.model}: {candidate} is the {CHAMPION} already"
    told = _not_worse(registry, champion, candidate, params.export.margin)
    registry.move(CHAMPION, candidate, {PREVIOUS: champion.number, EVIDENCE: told})
    return f"{registry.model}: {candidate} is the {CHAMPION}, in place of {champion.number}: {told}"


def roll_back(params: Params, method: str) -> str:
    """Make the version that the champion replaced the champion again; returns a line.

    Raises VidpipeError where there is none.
    """
    registry = _registry(params, method)
    champion = registry.with_alias(CHAMPION)
    if champion is None:
        raise VidpipeError(f"{registry.model}: no {CHAMPION}; `vidpipe promote {method}` makes one")
    before = champion.tags.get(PREVIOUS)
    if before is None:
        raise VidpipeError(
            f"{registry.model}: {champion} is the first {CHAMPION}; there is none before"
        )
    version = registry.numbered(before)
    if version is None:
        raise VidpipeError(
            f"{registry.model}: version {before}, the {CHAMPION} before {champion}, was deleted; "
            f"`vidpipe promote {method} --version N` takes another"
        )
    registry.move(CHAMPION, version, {})
    return f"{registry.model}: {version} is the {CHAMPION} again, in place of {champion.number}"


def _registry(params: Params, method: str) -> Registry:
    params.method(method)
    if params.export.register_as is None:
        raise VidpipeError(
            "export.register_as: null, so that no model is registered; expected a name"
        )
    return Registry(params.tracking, f"{params.export.register_as}-{method}")


def _not_worse(registry: Registry, champion: Version, candidate: Version, margin: float) -> str:
    """The evidence, as text. Raises VidpipeError where there is none, or it speaks against."""
    with TemporaryDirectory() as scratch:
        folders = [registry.evaluation(v, Path(scratch)) for v in (champion, candidate)]
        names = [f"{registry.model} {v}" for v in (champion, candidate)]
        _refuse_other_conditions(names, [read_json(f / "config.json") for f in folders])
        old, new = (read_evaluation(f, n) for f, n in zip(folders, names, strict=True))
        found = own_difference(old, new)
    low, high = bounds(found.values, found.groups)
    a, b = 100 * found.a, 100 * found.b
    told = (
        f"{found.name} {b:.1f} % against {a:.1f} % on the same {found.samples} of {found.groups} "
        f"groups, {b - a:+.1f} points"
    )
    if math.isnan(low):
        raise VidpipeError(
            f"{registry.model}: {candidate} stays a candidate, version {champion.number} the "
            f"{CHAMPION}: {told}; one group has no interval, so they need an evaluation on more"
        )
    told += f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low >= -margin - 1e-9:
        return told
    reason = "it is worse" if high < 0 else "this cannot rule out that it is worse"
    raise VidpipeError(
        f"{registry.model}: {candidate} stays a candidate, version {champion.number} the {CHAMPION}: "
        f"{told}; {reason}, and export.margin allows {-100 * margin:+.1f} at the low end"
    )


def _refuse_other_conditions(names: list[str], cards: list[Mapping[str, Any]]) -> None:
    """Raise one line where the two were not evaluated on the same clips and views."""
    (one, other), (a, b) = names, cards
    if a.get("clips_sha256") != b.get("clips_sha256"):
        raise VidpipeError(
            f"{other} was evaluated on other clips than {one}, the {CHAMPION}; evaluate and export "
            "both on the same data"
        )
    for key in VIEWS:
        first, second = (card.get("evaluate", {}).get(key) for card in cards)
        if first != second:
            raise VidpipeError(
                f"{other} was evaluated with evaluate.{key} {second}, {one} with {first}; evaluate and "
                "export both alike"
            )
