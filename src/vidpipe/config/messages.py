"""Errors of the schema in one line: the key, what was expected, and the nearest valid name."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

SHOWN = 5
"""Mistakes that one line names."""


def nearest(name: str, valid: Any) -> str:
    """ "; nearest valid name is X", or "; expected one of ..." where nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(str(name)[:80], [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; nearest is {near[0]}" if near else f"; expected one of {', '.join(sorted(valid))}"


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Valid names beside `location`'s last part."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line: every wrong key's path, what was expected, what was there, and the nearest name."""
    problems = []
    for item in error.errors():
        parts = (str(part) for part in (prefix, *item["loc"]) if part != "")
        path = ".".join(part if len(part) <= 80 else f"{part[:80]}..." for part in parts)
        if item["type"] == "extra_forbidden":
            valid = _fields_at(model, item["loc"])
            problems.append(f"{path}: unknown key{nearest(str(item['loc'][-1]), valid)}")
        elif item["type"] == "missing":
            problems.append(f"{path}: missing; it has no default")
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            problems.append(f"{path}: {message}" if path else message)
        else:
            problems.append(f"{path}: {item['msg']}, got {reprlib.repr(item['input'])}")
    more = len(problems) - SHOWN
    lines = problems[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
    return _printable(" ".join("; ".join(lines).split()))


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
