"""The base of every section of params.yaml, and the marks that a field of one can carry.

A mark stands in the field's annotation: `cache_mb: Annotated[int, NotDecisive()] = 1024`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

Mark = TypeVar("Mark")


class Section(BaseModel):
    """A part of params.yaml: unknown keys are refused, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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
