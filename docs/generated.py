"""Pages and figures that are made from the code: recipes, parameters, and where each method trains."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from vidpipe.methods.config import CONFIGS
from vidpipe.params import Params

NOTE = (
    "<!-- Made by docs/generated.py at each build; change the code or the recipe instead. -->\n\n"
)


def write(folder: Path) -> None:
    """recipes.md, parameters.md and figures/*.svg below `folder`, which git ignores."""
    (folder / "recipes.md").write_text(NOTE + recipes_page(), encoding="utf-8")
    (folder / "parameters.md").write_text(NOTE + parameters_page(), encoding="utf-8")
    from figures import draw_methods

    draw_methods(folder / "figures")


def recipes_page() -> str:
    from pipeline.infra.recipes import list_recipes, load_recipe

    lines = [
        "# Recipes\n",
        "A recipe is an overlay of `params.yaml`: `vidpipe train --recipe NAME --data-root DIR`.",
        "`vidpipe recipes` lists these with costs, [Your data](guides/data.md) has their layouts. An",
        "accuracy is the one that the paper prints; none has been reproduced here.\n",
        "| recipe | is | published top1 % |",
        "| --- | --- | --- |",
    ]
    for name, title in list_recipes():
        expects = load_recipe(name).expects
        top1 = expects.top1 if expects else None
        lines.append(f"| `{name}` | {cell(title)} | {'' if top1 is None else top1} |")
    return "\n".join(lines) + "\n"


def parameters_page() -> str:
    lines = [
        "# Parameters\n",
        "Every number of the pipeline stands in `params.yaml`. `vidpipe params` prints it with its",
        "defaults filled in, `vidpipe params --set train.epochs=5 --write` changes it, and each",
        "command takes `--set KEY=VALUE` for one run.\n",
    ]
    for name, field in Params.model_fields.items():
        section = model_of(field.annotation)
        if name == "methods" or section is None:
            continue
        lines += [f"## {name}\n", *about(section), *table(section)]
    lines += [
        "## methods\n",
        "One block a method, `methods.NAME`; each option is absent at its default.\n",
    ]
    for name, config in CONFIGS.items():
        lines += [f"### {name}\n", *about(config), *table(config)]
    return "\n".join(lines) + "\n"


def about(model: type[BaseModel]) -> list[str]:
    text = (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    return [" ".join(text.split()) + "\n"] if text and not text.startswith("!!!") else []


def table(model: type[BaseModel]) -> list[str]:
    rows = [
        f"| `{name}` | {kind(field.annotation)} | {default(field)} | {cell(field.description or '')} |"
        for name, field in model.model_fields.items()
    ]
    return ["| key | takes | default | |", "| --- | --- | --- | --- |", *rows, ""]


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section's class, also of `Section | None`."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def default(field: Any) -> str:
    if field.default_factory is not None:
        value = field.default_factory()
    elif field.default is PydanticUndefined:
        return "required"
    else:
        value = field.default
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    shown = yaml.safe_dump(as_yaml(value), default_flow_style=True, width=1000)
    return f"`{shown.removesuffix('...' + chr(10)).strip()}`"


def as_yaml(value: Any) -> Any:
    """`value` as lists and mappings, which is how params.yaml has it."""
    if isinstance(value, dict):
        return {key: as_yaml(one) for key, one in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [as_yaml(one) for one in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def kind(annotation: Any) -> str:
    return ", ".join(dict.fromkeys(words(annotation)))


def words(annotation: Any) -> Iterator[str]:
    """Of a type, as a user of YAML says them."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        yield "null"
    elif origin is Literal:
        yield from (f"`{value}`" for value in args)
    elif origin in (list, tuple, set, frozenset):
        inner = kind(args[0]) if args else "values"
        plural = {"integer": "integers", "number": "numbers", "text": "texts"}
        yield f"list of {plural.get(inner, inner)}"
    elif origin is dict:
        yield "mapping"
    elif origin is types.UnionType or str(origin) == "typing.Union":
        for part in args:
            yield from words(part)
    elif origin is not None and args:  # Annotated
        yield from words(args[0])
    elif isinstance(annotation, type):
        known = {int: "integer", float: "number", bool: "true or false", str: "text"}
        yield known.get(annotation, "path" if annotation is Path else "mapping")
    else:
        yield cell(str(annotation).rsplit(".", 1)[-1])


def cell(text: str) -> str:
    """Plain text for a table, but for what stands as `code` in it."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"([*_<{}])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
