"""Errors of the schema in one line: the key, what was expected, and the nearest valid name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


def nearest(name: str, valid: Any) -> str:
    """ "; nearest valid name is X", or "; expected one of ..." where nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
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
        path = ".".join(str(part) for part in (prefix, *item["loc"]) if part != "")
        if item["type"] == "extra_forbidden":
            valid = _fields_at(model, item["loc"])
            problems.append(f"{path}: unknown key{nearest(str(item['loc'][-1]), valid)}")
        elif item["type"] == "missing":
            problems.append(f"{path}: missing; it has no default")
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            problems.append(f"{path}: {message}" if path else message)
        else:
            problems.append(f"{path}: {item['msg']}, got {item['input']!r}")
    return "; ".join(problems)
