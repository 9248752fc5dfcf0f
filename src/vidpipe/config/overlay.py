"""Plain YAML values, and mappings laid over one another, before they are validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidpipe.config.yaml_text import parse_yaml, read_yaml_file
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
        parsed: Any = parse_yaml(value, text[:200])
    except VidpipeError as error:
        raise ArgumentError("set", f" {error}") from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping. Raises VidpipeError for anything else, and as `parse_yaml` does."""
    try:
        content = read_yaml_file(path)
    except FileNotFoundError:
        raise VidpipeError(
            f"{path}: no such file; run vidpipe in the folder that holds params.yaml"
        ) from None
    if not isinstance(content, dict):
        raise VidpipeError(f"{path}: expected a mapping of sections")
    return content
