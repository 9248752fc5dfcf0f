"""The base of every section of params.yaml, and the marks that a field of one can carry.

A mark stands in the field's annotation: `cache_mb: Annotated[int, NotDecisive()] = 1024`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

Mark = TypeVar("Mark")


LARGEST = 1_000_000
"""The most, up or down, that a number of a section may be where its field has no upper bound."""
LONGEST = 1_000
"""The most characters that a text may have."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, and values never change.

    Numbers are finite and at most LARGEST, in lists and mappings too, unless their field has an upper
    bound of its own (`le`, `lt`); texts have at most LONGEST characters, and no control characters.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        str_max_length=LONGEST,
    )

    @field_validator("*")
    @classmethod
    def _sane(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        bounded = any(hasattr(x, "le") or hasattr(x, "lt") for x in field.metadata)
        _refuse_extremes(value, bounded)
        return value


def _refuse_extremes(value: Any, bounded: bool) -> None:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"expected no control characters, got {reprlib.repr(value)}")
    if isinstance(value, int | float) and not bounded and abs(value) > LARGEST:
        raise ValueError(f"expected a number of at most {LARGEST:,}, got {reprlib.repr(value)}")
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for part in value:
            _refuse_extremes(part, bounded)


def ascending(values: tuple[float, float]) -> tuple[float, float]:
    """A validator of ranges."""
    if values[0] > values[1]:
        raise ValueError(f"expected [low, high], got {list(values)}")
    return values


@dataclass(frozen=True)
class NotDecisive:
    """Mark of a field that changes no result: a limit of the machine, or how work is shared out.
    A field without it decides.

    `unless` is (name, value) of a field beside it: with that value, this one decides after all.
    """

    unless: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Place(NotDecisive):
    """Mark of a place that a stage reads: what lies there decides, and is hashed."""


@dataclass(frozen=True)
class AbsentAtDefault:
    """Mark of a deciding field that came later, and at its default changes nothing: identities made
    before it was there stay as they are."""


@dataclass(frozen=True)
class OnlyTraining:
    """Mark of a method's option that decides how its tensors are trained, not what they mean: another
    value still fits a trained adapter."""


@dataclass(frozen=True)
class SetBySearch:
    """Mark of a field that a search sets itself, so that it cannot be searched."""

    why: str


def mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    """The field's mark of this kind, if it has one."""
    return next((found for found in field.metadata if isinstance(found, kind)), None)
