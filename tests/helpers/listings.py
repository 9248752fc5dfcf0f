"""Data sets on disk, and what a layout says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vidpipe.data.config import DataConfig
from vidpipe.data.layouts import Listing, list_items
from vidpipe.errors import VidpipeError

SEVERAL_LABELS = {"charades"}
"""Layouts that are of task multilabel only."""


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def put(root: Path, name: str, content: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / name).write_text(text, encoding="utf-8")


def rows(listing: Listing) -> list[tuple[str, str, str]]:
    return [(item.path, item.label, item.split) for item in listing.items]


def config(root: Path, layout: str, **options: object) -> DataConfig:
    if layout in SEVERAL_LABELS:
        options = {"task": "multilabel", **options}
    return DataConfig.model_validate({"root": str(root), "layout": layout, **options})


def refused(wanted: DataConfig, message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as caught:
        list_items(wanted)
    assert "\n" not in str(caught.value)
