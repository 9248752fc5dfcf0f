"""Recipes: overlays of params.yaml, one file each; their first comment line is the title."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidpipe.config import nearest, read_yaml
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file

FOLDER = Path(__file__).parent


def list_recipes() -> list[tuple[str, str]]:
    """(name, title) of every recipe that comes with vidpipe."""
    files = sorted(FOLDER.glob("*.yaml"))
    return [(f.stem, f.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")) for f in files]


def read_recipe(name: str) -> dict[str, Any]:
    """The overlay `name` of this folder, or of a file where `name` ends in .yaml."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    known = [recipe for recipe, _ in list_recipes()]
    if name not in known:
        raise VidpipeError(f"--recipe {name}: no such recipe{nearest(name, known)}")
    return read_yaml(FOLDER / f"{name}.yaml")


def write_overlay(file: Path, overlay: Mapping[str, Any]) -> None:
    """Write values into a params file, keeping its comments and order."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
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
