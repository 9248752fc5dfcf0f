"""Every field of params.yaml, found by walking the schema, and values for each from its JSON schema."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from project import PROJECT
from pydantic import BaseModel, ValidationError

from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.config.section import Section
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.params import Params

# Dense sampling: evaluation may take more than one clip of it.
RAW = deep_merge(read_yaml(PROJECT / "params.yaml"), {"sampling": {"strategy": "dense"}})
Schema = dict[str, Any]


@dataclass(frozen=True)
class Leaf:
    """A field of the schema: `owner.name`, at `path` in params.yaml."""

    path: tuple[str, ...]
    owner: type[BaseModel]

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def method(self) -> str:
        return self.path[1] if self.path[0] == "methods" else "st_adapter"

    def schema(self) -> tuple[Schema, Schema]:
        """The field's own JSON schema, and the definitions that it may refer to."""
        whole = self.owner.model_json_schema()
        return whole["properties"][self.name], whole.get("$defs", {})

    def set(self, value: Any) -> Params:
        """params.yaml with another value here. Raises VidpipeError or ValidationError."""
        for part in reversed(self.path):
            value = {part: value}
        return Params.model_validate(deep_merge(RAW, value))

    def get(self, params: Params) -> Any:
        found: Any = params
        for part in self.path:
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return found


def leaves() -> list[Leaf]:
    """All fields, those of every method and of sections within sections too."""
    found = list(_below(Params, ()))
    for name, config in CONFIGS.items():
        found += _below(config, ("methods", name))
    return [leaf for leaf in found if leaf.path != ("methods",)]


def _below(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        own = (field.annotation, *typing.get_args(field.annotation))
        sections = [x for x in own if isinstance(x, type) and issubclass(x, Section)]
        if field.annotation not in sections:
            yield Leaf((*path, name), model)
        for section in sections:
            yield from _below(section, (*path, name))


def values(schema: Schema, definitions: Schema) -> Iterator[Any]:
    """Ordinary values that such a field can have, each of another kind or size."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        for kind in schema["anyOf"]:
            yield from values(kind, definitions)
    elif "enum" in schema or "const" in schema:
        yield from schema.get("enum", [schema.get("const")])
    elif (kind := schema.get("type")) == "boolean":
        yield from (True, False)
    elif kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum")
        yield from (low, *((high,) if high is not None else ()))
        yield from (0.1, 0.3, 0.5) if kind == "number" else ()
        yield from (low + step for step in (1, 2, 3, 4, 16))
    elif kind == "string":
        yield from ("one", "two")
    elif kind == "null":
        yield None
    elif kind == "array":
        yield from _lists(schema, definitions)
    elif kind == "object" and "properties" not in schema:
        inner = schema.get("additionalProperties", {"type": "string"})
        names = schema.get("propertyNames", {}).get("enum", ["val", "train"])
        yield from ({names[0]: value} for value in itertools.islice(values(inner, definitions), 9))
    elif kind == "object":
        yield {}


def _lists(schema: Schema, definitions: Schema) -> Iterator[list[Any]]:
    if "prefixItems" in schema:
        each = [list(values(item, definitions)) for item in schema["prefixItems"]]
        yield from (list(parts) for parts in itertools.islice(itertools.product(*each), 200))
        return
    items = list(itertools.islice(values(schema["items"], definitions), 12))
    yield from ([item] for item in items)
    yield items[:2]
    yield []


def other_values(leaf: Leaf) -> list[Params]:
    """params.yaml with other values of this field, as many as are valid with all that it holds."""
    before = leaf.get(nested(leaf))
    found = []
    for value in values(*leaf.schema()):
        try:
            params = leaf.set(value)
        except (ValidationError, VidpipeError):
            continue
        if leaf.get(params) != before:
            found.append(params)
    return found


def nested(leaf: Leaf) -> Params:
    """params.yaml, where the section around `leaf` may be null: with that section there."""
    default = leaf.owner.model_fields[leaf.name].get_default()
    try:
        leaf.get(params := Params.model_validate(RAW))
    except (AttributeError, KeyError):
        return leaf.set(default)
    return params
