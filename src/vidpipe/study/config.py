"""`study` in params.yaml. No torch: read by the CLI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from vidpipe.config.section import NotDecisive, Section, Seed

Fraction = Annotated[float, Field(gt=0, le=1)]


class StudyConfig(Section):
    """A comparison: rows x folds x fractions x seeds, each row tuned in the training part of its fold.

    A row is a method with some options: `methods`, or `rows`, times `grid`. Keys of `rows`, `grid` and
    `spaces` are keys of params.yaml; one without a dot is an option of the row's method.

    Example:
        study:
          rows:
            spatial only: {method: aim, temporal: false}
            full: {method: aim}
          grid: {bottleneck_ratio: [0.125, 0.25]}
    """

    name: Annotated[str, NotDecisive()] = Field(
        "default", pattern=r"^[\w][\w.-]*$", description="of its folder in results/studies"
    )
    methods: tuple[str, ...] = Field(
        (), description="what is compared; empty, and no rows: pipeline.methods"
    )
    rows: dict[str, dict[str, str]] = Field(
        {}, description="name: {method: NAME, key: value, ...}, in place of methods"
    )
    grid: dict[str, tuple[str, ...]] = Field(
        {}, description="key: values; each row once with each combination"
    )
    reference: str = Field(
        "linear_probe", description="the row that all are also compared with; absent: the first"
    )
    folds: Annotated[int, Field(ge=2, le=10_000)] | Literal["leave_one_out", "split"] = Field(
        3,
        description="a number, by data.group; leave_one_out: a fold a group; split: the data set's own "
        "train and val, and every clip of val is tested",
    )
    fold_seed: Seed = Field(0, description="of the draw of folds, inner splits and fractions")
    seeds: int = Field(
        1,
        ge=1,
        le=1000,
        description="trainings of each chosen setting: train.seed, train.seed + 1, ...",
    )
    fractions: tuple[Fraction, ...] = Field(
        (1.0,), min_length=1, description="of the training groups of a fold, for learning curves"
    )
    retune: bool = Field(
        False, description="tune each fraction anew; false: with what the largest one chose"
    )
    trials: int = Field(
        8,
        ge=1,
        le=10_000,
        description="settings tried for each row and fold, the row's own first; 1: no tuning",
    )
    budget: Literal["trials", "compute"] = Field(
        "trials",
        description="compute: the costliest row has `trials`, cheaper ones as many as cost the same",
    )
    halving: int = Field(
        3, ge=1, le=100, description="of the trials, one in so many goes on at each rung; 1: all do"
    )
    inner_fraction: float = Field(
        0.25, gt=0, lt=1, description="of the training part of a fold, by groups, to tune on"
    )
    spaces: dict[str, dict[str, str]] = Field(
        {}, description="row or method: {key: domain}, in place of the method's own space"
    )
    search_seed: Seed = 0
    num_workers: Annotated[int, NotDecisive()] = Field(
        0, ge=0, le=4096, description="Ray workers that train a cell each; 0: this process, in turn"
    )
    ray_address: Annotated[str | None, NotDecisive()] = Field(
        None, description="null: RAY_ADDRESS, or a Ray of our own; auto, or host:port"
    )

    @field_validator("rows", "grid", "spaces", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        """Values as texts: JSON, which is YAML on one line."""
        if not isinstance(value, Mapping):
            return value
        return {str(k): _texts(v) for k, v in value.items()}

    @field_validator("fractions")
    @classmethod
    def _distinct(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(fractions)) < len(fractions):
            raise ValueError(f"a fraction is given twice: {list(fractions)}")
        return tuple(sorted(fractions))


def _texts(value: Any) -> Any:
    """Of a row or a grid's list: every value as one text."""
    if isinstance(value, Mapping):
        return {str(k): _text(v) for k, v in value.items()}
    return [_text(v) for v in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
