"""Every field of params.yaml, found by walking the schema, and values for each from its JSON schema."""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from project import PROJECT
from pydantic import BaseModel

from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.config.section import LARGEST, Section
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.params import Params, parse_params

# Dense sampling: evaluation may take more than one clip of it.
RAW = deep_merge(read_yaml(PROJECT / "params.yaml"), {"sampling": {"strategy": "dense"}})
Schema = dict[str, Any]
NEEDS = {"train.focal_gamma": {"data": {"task": "multilabel"}}}
"""Field -> what else has to hold for it to have another value than its default."""


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

    @property
    def raw(self) -> Any:
        return deep_merge(RAW, NEEDS.get(self.key, {}))

    def set(self, value: Any) -> Params:
        """params.yaml with another value here. Raises VidpipeError."""
        for part in reversed(self.path):
            value = {part: value}
        return parse_params(deep_merge(self.raw, value))

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
        yield from schema.get("examples", ("one", "two"))
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
        except VidpipeError:
            continue
        if leaf.get(params) != before:
            found.append(params)
    return found


INF, NAN = math.inf, math.nan
NUMBERS = (-1, 0, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), INF, -INF, NAN, 5e-324, 1e308, 1.5)
TEXTS = ("", "\0", "a\nb", "\x1b[2J", "x" * 300, "x" * 5000, "../..", "nosuch://x", "1e999", "é")
OTHERS = (
    None,
    True,
    [],
    {},
    [[[]]],
    {"a": INF},
    {"\0": "\0"},
    ["a", "a"],
    [1, 0],
    [2, 3],
    [0.9, 0.1],
)


def extremes(leaf: Leaf) -> list[Any]:
    """Values at and beyond the edges of such a field, and of other kinds."""
    schema, definitions = leaf.schema()
    edges = [*NUMBERS, LARGEST, LARGEST + 1, *_edges(schema, definitions)]
    sizes = {size for size in _sizes(schema, definitions) if size}
    lists = [[edge] * size for size in sizes for edge in edges]
    lists += [[[edge] * 2] for edge in edges if 2 in sizes]
    return [*edges, *TEXTS, *OTHERS, *values(schema, definitions), *lists]


def _edges(schema: Schema, definitions: Schema) -> Iterator[float]:
    """Every bound within the schema, and the numbers beside it."""
    for key, value in _walk(schema, definitions):
        if key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            yield from (value, value - 1, value + 1, value * (1 - 1e-12))


def _sizes(schema: Schema, definitions: Schema) -> Iterator[int]:
    """How many items a list within the schema may have."""
    for key, value in _walk(schema, definitions):
        if key == "type" and value == "array":
            yield 1
        elif key in ("minItems", "maxItems"):
            yield value


def _walk(schema: Any, definitions: Schema) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            if key == "$ref":
                yield from _walk(definitions[value.rpartition("/")[2]], definitions)
            yield from _walk(value, definitions)
    elif isinstance(schema, list):
        for part in schema:
            yield from _walk(part, definitions)


def nested(leaf: Leaf) -> Params:
    """params.yaml, where the section around `leaf` may be null: with that section there."""
    default = leaf.owner.model_fields[leaf.name].get_default()
    try:
        leaf.get(params := Params.model_validate(leaf.raw))
    except (AttributeError, KeyError):
        return leaf.set(default)
    return params
