"""Plain YAML values, and mappings laid over one another, before they are validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vidpipe.errors import ArgumentError, VidpipeError


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`; mappings merge, everything else (lists too) replaces."""
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """`train.epochs=5` -> {"train": {"epochs": 5}}; the value is YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ArgumentError("set", f" {text}: expected key=value, such as train.epochs=5")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ArgumentError("set", f" {text}: the value is not valid YAML") from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VidpipeError(
            f"{path}: no such file; run vidpipe in the folder that holds params.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VidpipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise VidpipeError(f"{path}: expected a mapping of sections")
    return content
