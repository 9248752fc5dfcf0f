"""Recipes: overlays of params.yaml, one file each; their first comment line is the title.

A recipe `extends` others, the later over the earlier and the file itself over all: names of this
folder (`base/` holds parts that are not listed) or, from a user's file, also files of its own
folder. Keys that are not parameters and never reach them: `expects`, what the paper printed, or `ours`
(`modern/`), what a recipe is for that no paper has; `starts_from`, the recipe whose trained adapter a
published row began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from vidpipe.config.messages import explain, nearest
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.config.section import Section
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file

FOLDER = Path(__file__).parents[1] / "recipes"
NO_PARAMETERS = ("extends", "expects", "ours", "starts_from")
NULL = "tag:yaml.org,2002:null"
Dataset = Literal["K400", "K700", "SSv2", "Diving48", "UCF101", "HMDB51", "AVA2.2"]


class Subject(Section):
    """What a recipe is for."""

    dataset: Dataset
    backbone: str = Field(description="as the paper prints it, such as ViT-B/16")
    pretrain: str


class Expects(Subject):
    """The row of a paper's table that a recipe is for. 001 AIM, 002 ST-Adapter, 003 ZeroI2V."""

    paper: Literal["001", "002", "003"]
    table: str
    top1: float | None = None
    top5: float | None = None
    map: float | None = Field(None, description="frame mAP of detection, in place of top1")
    tunable_m: int | float | None = Field(
        None, description="as printed: papers differ about the head"
    )
    gflops: float | None = Field(None, description="multiply-accumulates of all views, / 1e9")
    norms: bool = Field(True, description="false: printed without the LayerNorms' (AIM)")
    code_top1: float | None = Field(
        None, description="what the README of the authors' code reports"
    )


Of = TypeVar("Of", bound=Subject)


@dataclass(frozen=True)
class Recipe:
    name: str
    title: str
    overlay: dict[str, Any]
    """Of params.yaml, with everything it extends."""
    expects: Expects | None
    ours: Subject | None
    starts_from: str | None

    @property
    def methods(self) -> list[str]:
        blocks = self.overlay.get("methods")
        return list(blocks) if isinstance(blocks, Mapping) else []


def list_recipes() -> list[tuple[str, str]]:
    """(name, title) of every recipe that comes with vidpipe and is of one training."""
    files = [*sorted(FOLDER.glob("*.yaml")), *sorted(FOLDER.glob("modern/*.yaml"))]
    return [(_name(file), _title(file)) for file in files]


def _name(file: Path) -> str:
    """`modern/NAME` or NAME for a file of FOLDER, its stem for a user's."""
    own = file.is_relative_to(FOLDER)
    return (file.relative_to(FOLDER).with_suffix("") if own else Path(file.stem)).as_posix()


def list_studies() -> list[tuple[str, str]]:
    """(name, title) of every recipe of a study."""
    files = sorted((FOLDER / "studies").glob("*.yaml"))
    return [(f"studies/{file.stem}", _title(file)) for file in files]


def _title(file: Path) -> str:
    first, *_ = file.read_text(encoding="utf-8").splitlines() or [""]
    return first.lstrip("# ") if first.startswith("#") else ""


def read_recipe(name: str) -> dict[str, Any]:
    """The overlay of recipe `name`: of this folder, or a file where `name` ends in .yaml."""
    return load_recipe(name).overlay


def load_recipe(name: str) -> Recipe:
    """Recipe `name` with all that it extends: one of this folder, or a file where `name` ends in .yaml.

    Raises VidpipeError for an unknown name, a base outside the two folders, or a cycle.
    """
    if name.endswith((".yaml", ".yml")):
        file = Path(name)
    else:
        known = [recipe for recipe, _ in (*list_recipes(), *list_studies())]
        if name not in known:
            near = nearest(name, known)
            more = "; `vidpipe recipes` lists them" if "expected one of" in near else near
            raise VidpipeError(f"--recipe {name}: no such recipe{more}")
        file = FOLDER / f"{name}.yaml"
    own = read_yaml(file)
    expects = _checked(file, own, "expects", Expects)
    ours = _checked(file, own, "ours", Subject)
    start = own.get("starts_from")
    if start is not None and start not in [recipe for recipe, _ in list_recipes()]:
        raise VidpipeError(f"{file}: starts_from: {start!r} is no recipe")
    # What a recipe promises is of that very file: a user's variant of a row promises nothing.
    return Recipe(_name(file), _title(file), _resolve(file, ()), expects, ours, start)


def _checked(file: Path, own: Mapping[str, Any], key: str, schema: type[Of]) -> Of | None:
    try:
        return None if own.get(key) is None else schema.model_validate(own[key])
    except ValidationError as error:
        raise VidpipeError(f"{file}: {explain(error, schema, key)}") from None


def _resolve(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    file = file.resolve()
    if file in above:
        chain = " -> ".join(f.stem for f in (*above[above.index(file) :], file))
        raise VidpipeError(f"{file}: extends itself: {chain}")
    content = read_yaml(file)
    extends = content.get("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise VidpipeError(f"{file}: extends: expected names of recipes, got {extends!r}")
    merged: dict[str, Any] = {}
    for name in names:
        merged = deep_merge(merged, _resolve(_base(file, name), (*above, file)))
    own = {k: v for k, v in content.items() if k not in NO_PARAMETERS}
    return deep_merge(merged, own)


def _base(file: Path, name: str) -> Path:
    """The file that `name` stands for in `file`: of vidpipe's recipes, or beside `file`."""
    if name.endswith((".yaml", ".yml")):
        folder, found = file.parent, (file.parent / name).resolve()
    else:
        folder, found = FOLDER, (FOLDER / f"{name}.yaml").resolve()
    if not found.is_relative_to(folder.resolve()):
        raise VidpipeError(f"{file}: extends: {name} is outside {folder}")
    if not found.is_file():
        known = [p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml")]
        raise VidpipeError(f"{file}: extends: {name}: no such recipe{nearest(name, known)}")
    return found


def write_overlay(file: Path, overlay: Mapping[str, Any]) -> None:
    """Write values into a params file, keeping its comments and order."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda writer, _: writer.represent_scalar(NULL, "null")
    )
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(file.read_text(encoding="utf-8"))
    _update(document, overlay)
    with atomic_file(file) as temporary:
        yaml.dump(document, temporary)


def _update(target: Any, overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), Mapping):
            _update(target[key], value)
        else:
            target[key] = value
