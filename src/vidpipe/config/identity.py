"""What decides a result, and short identities made of it: the only place that reads `NotDecisive` and
`AbsentAtDefault`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from vidpipe.config.section import AbsentAtDefault, NotDecisive, mark


def config_hash(*parts: Any) -> str:
    """Identity of a result, twelve letters: the same deciding values give the same ones.

    A section of params.yaml counts with its deciding fields; anything else as the JSON that it is.
    """
    text = json.dumps([deciding(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def deciding(value: Any) -> Any:
    """`value` as plain values, its sections without the fields that change no result."""
    if isinstance(value, BaseModel):
        names = (name for name in type(value).model_fields if decides(value, name))
        return {name: deciding(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): deciding(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [deciding(part) for part in value]
    return value


def decides(section: BaseModel, name: str) -> bool:
    """Whether field `name` of `section` is part of its identity, the section's other values given."""
    field = type(section).model_fields[name]
    if mark(field, AbsentAtDefault) and getattr(section, name) == field.get_default():
        return False
    found = mark(field, NotDecisive)
    if found is None:
        return True
    return found.unless is not None and getattr(section, found.unless[0]) == found.unless[1]


def deciding_keys(model: type[BaseModel]) -> list[str]:
    """Fields of a section that can change a result, whatever its other values are."""
    marks = {name: mark(field, NotDecisive) for name, field in model.model_fields.items()}
    return [name for name, found in marks.items() if found is None or found.unless is not None]
