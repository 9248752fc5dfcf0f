"""The rows of a study, methods with some options, and the settings that each is tuned over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.infra.console import console
from pipeline.infra.search_space import (
    Domain,
    Space,
    as_text,
    check_space,
    default_space,
    overrides,
    parse_space,
    resolve,
)
from vidpipe.config.messages import nearest
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.params import Params

MOST_ROWS = 500
MOST_TIMES = 10
"""Of `study.trials`, what a cheap row may have at most with `study.budget: compute`."""


@dataclass(frozen=True)
class Row:
    """A method with options, as texts of `--set`."""

    name: str
    method: str
    sets: tuple[str, ...] = ()


def study_rows(
    params: Params, raw: Mapping[str, Any], only: Sequence[str] | None = None
) -> list[Row]:
    """All rows, in their order, each once, or `only` those of these names.

    Raises VidpipeError for a row that cannot be, and for a name that no row has.
    """
    study = params.study
    if study.rows and study.methods:
        raise VidpipeError("study: give methods or rows, not both")
    if study.rows:
        rows = [_row(name, dict(options)) for name, options in study.rows.items()]
    else:
        names = study.methods or params.pipeline.methods
        if not names:
            raise VidpipeError("study.methods: nothing to compare, and pipeline.methods is empty")
        rows = [_row(name, {}) for name in names]
    if nothing := [key for key, values in study.grid.items() if not values]:
        raise VidpipeError(f"study.grid.{nothing[0]}: nothing to try")
    found = [row for row in rows for row in _with_grid(row, study.grid)]
    if len(found) > MOST_ROWS:
        raise VidpipeError(f"study.grid: {len(found)} rows; expected at most {MOST_ROWS}")
    twice = [a.name for a, b in itertools.combinations(found, 2) if a.name == b.name]
    if twice:
        raise VidpipeError(f"study: row {twice[0]!r} is there twice")
    if only:
        known = [row.name for row in found]
        if unknown := [name for name in only if name not in known]:
            raise ArgumentError("row", f" {unknown[0]}: no such row{nearest(unknown[0], known)}")
        found = [row for row in found if row.name in only]
    for row in found:
        try:
            resolve(raw, row.sets)
        except VidpipeError as error:
            raise VidpipeError(f"study: row {row.name!r}: {error}") from None
    return found


def _row(name: str, options: dict[str, str]) -> Row:
    method = options.pop("method", name)
    if method not in CONFIGS:
        where = f"study.rows.{name}.method" if method != name else "study"
        raise VidpipeError(f"{where}: {method}: no such method{nearest(method, CONFIGS)}")
    return Row(name, method, tuple(f"{_full(key, method)}={v}" for key, v in options.items()))


def _full(key: str, method: str) -> str:
    """A key without a dot is an option of the method."""
    return key if "." in key else f"methods.{method}.{key}"


def _with_grid(row: Row, grid: Mapping[str, Sequence[str]]) -> list[Row]:
    if not grid:
        return [row]
    rows = []
    for values in itertools.product(*grid.values()):
        pairs = list(zip(grid, values, strict=True))
        name = " ".join([row.name, *(f"{key.rpartition('.')[2]}={v}" for key, v in pairs)])
        sets = tuple(f"{_full(key, row.method)}={value}" for key, value in pairs)
        rows.append(Row(name, row.method, (*row.sets, *sets)))
    return rows


def row_space(row: Row, params: Params, raw: Mapping[str, Any]) -> Space:
    """What is searched for `row`: `study.spaces` by row or method, else the method's own space; never
    what the row itself sets. Raises VidpipeError as `check_space` does."""
    spaces = params.study.spaces
    own = spaces.get(row.name, spaces.get(row.method))
    if own is None:
        texts = default_space(row.method)
    else:
        texts = [f"{_full(key, row.method)}={domain}" for key, domain in own.items()]
    fixed = {text.partition("=")[0] for text in row.sets}
    texts = [text for text in texts if text.partition("=")[0] not in fixed]
    space = parse_space(texts)
    base: Mapping[str, Any] = raw
    try:
        for warning in check_space(space, base, row.method):
            console.print(f"row {row.name!r}: trials with this value will fail: {warning}")
    except VidpipeError as error:
        raise VidpipeError(f"study: row {row.name!r}: {error}") from None
    return space


def check_spaces(params: Params, rows: Sequence[Row]) -> None:
    """Raises VidpipeError for a name in `study.spaces` that is neither a row nor a method of one."""
    known = {name for row in rows for name in (row.name, row.method)}
    if unknown := sorted(set(params.study.spaces) - known):
        raise VidpipeError(
            f"study.spaces.{unknown[0]}: no such row or method here{nearest(unknown[0], known)}"
        )


def draw_settings(space: Space, count: int, seed: int) -> list[tuple[str, ...]]:
    """`count` settings, each as texts of `--set`; the first is the row's own, without any.

    The rest are points of a scrambled Halton sequence (Halton 1960; Owen 2017), which covers a range
    more evenly than as many independent draws, and of which fewer are always the first of more.
    """
    if not space or count < 2:
        return [()]
    from scipy.stats import qmc

    points = qmc.Halton(len(space), scramble=True, rng=seed).random(count - 1)
    keys = list(space)
    return [
        (),
        *(
            tuple(overrides({k: _value(space[k], u) for k, u in zip(keys, point, strict=True)}))
            for point in points.tolist()
        ),
    ]


def _value(domain: Domain, u: float) -> str | float:
    """The domain's value at quantile `u` of [0, 1)."""
    if domain.kind == "choice":
        return domain.choices[min(int(u * len(domain.choices)), len(domain.choices) - 1)]
    if domain.kind == "loguniform":
        low, high = math.log(domain.low), math.log(domain.high)
        return math.exp(low + u * (high - low))
    value = domain.low + u * (domain.high - domain.low)
    return as_text(int(value)) if domain.kind == "randint" else value


def trial_counts(trials: int, budget: str, costs: Sequence[float]) -> list[int]:
    """Trials of each row: equal, or for `compute` as many as cost what `trials` of the costliest do."""
    if budget == "trials":
        return [trials] * len(costs)
    most = max(costs, default=0.0)
    return [
        min(MOST_TIMES * trials, int(trials * most / cost)) if cost else trials for cost in costs
    ]
