"""What videos a data set has: a folder a class, or a CSV. Labels and paths are untrusted input."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vidpipe.config import nearest
from vidpipe.data.config import DataConfig
from vidpipe.errors import VidpipeError

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in "mp4 m4v mov avi mkv webm mpg mpeg ts mts wmv flv 3gp ogv".split()  # noqa: SIM905
)
SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "val"}


@dataclass(frozen=True)
class Item:
    """One video before extraction. `path` is relative to the data root, with forward slashes."""

    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Listing:
    """What a data set has. `classes`: class index -> name, in the data set's own order."""

    items: list[Item]
    classes: tuple[str, ...]


def list_items(config: DataConfig) -> Listing:
    """Every video of the data set, sorted by path, and its classes.

    Raises VidpipeError for a missing folder or column, a path outside the root, a label outside
    `data.classes`, a path listed twice, fewer than two classes, or an empty split.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise VidpipeError(f"data.root: {root}: no such folder; set data.root or --data-root")
    rows = _from_folders(root) if config.annotations is None else _from_csv(root, config)
    if not rows:
        raise VidpipeError(f"data.root: {root}: no videos found")
    if twice := [path for path, n in Counter(path for path, _, _ in rows).items() if n > 1]:
        raise VidpipeError(f"data.annotations: {twice[0]} is listed more than once")

    labels = sorted({label for _, label, _ in rows})
    if config.classes is not None:
        if unknown := [label for label in labels if label not in config.classes]:
            raise VidpipeError(
                f"data.classes: label {unknown[0]!r} of the data set is not in the list"
                + nearest(unknown[0], config.classes)
            )
    elif len(labels) < 2:
        raise VidpipeError(
            f"data.root: {root}: only one class ({labels[0]!r}); a classifier needs at least two"
        )
    items = sorted(_with_splits(rows, config), key=lambda item: item.path)
    for split in ("train", "val"):
        if not any(item.split == split for item in items):
            raise VidpipeError(f"data.root: {root}: no video in split {split!r}")
    return Listing(items, config.classes if config.classes is not None else tuple(labels))


def resolve_inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused when it leaves `root` (.., absolute paths, links)."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise VidpipeError(f"data.annotations: path {relative!r} leaves data.root {root}")
    return path


def _from_folders(root: Path) -> list[tuple[str, str, str | None]]:
    rows: list[tuple[str, str, str | None]] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        for file in folder.rglob("*"):
            if file.is_file() and file.suffix.lower() in VIDEO_SUFFIXES:
                rows.append((file.relative_to(root).as_posix(), folder.name, None))
    return rows


def _from_csv(root: Path, config: DataConfig) -> list[tuple[str, str, str | None]]:
    source = resolve_inside(root, str(config.annotations))
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise VidpipeError(f"data.annotations: {source}: no such file") from None
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise VidpipeError(f"data.annotations: {source}: not a readable CSV ({error})") from None
    names = config.columns
    used = {names.path, names.label} | {c for rule in config.keep.values() for c in rule}
    for column in used - set(table.columns):
        raise VidpipeError(
            f"{source}: no column {column!r}{nearest(column, list(table.columns))}; "
            "see data.columns and data.keep"
        )
    rows: list[tuple[str, str, str | None]] = []
    for record in table.to_dict("records"):
        path, label = record[names.path], record[names.label]
        resolve_inside(root, path)
        if not path or not label:
            raise VidpipeError(f"{source}: a row has no path or no label: {record}")
        split = None
        if names.split in table.columns:
            split = SPLITS.get(record[names.split].lower())
            if split is None:
                raise VidpipeError(
                    f"{source}: split {record[names.split]!r} of {path}; expected train or val"
                )
            if any(record[c] != value for c, value in config.keep.get(split, {}).items()):
                continue
        rows.append((Path(path).as_posix(), label, split))
    return rows


def _with_splits(rows: list[tuple[str, str, str | None]], config: DataConfig) -> list[Item]:
    """Where there is no split, `val_fraction` of each class by hash: adding videos moves no other."""
    items = [Item(path, label, split) for path, label, split in rows if split is not None]
    by_class: dict[str, list[str]] = {}
    for path, label, split in rows:
        if split is None:
            by_class.setdefault(label, []).append(path)
    for label, paths in by_class.items():
        paths.sort(key=lambda p: hashlib.sha256(f"{config.seed} {p}".encode()).digest())
        held_out = max(1, round(config.val_fraction * len(paths)))
        items += [Item(p, label, "val" if i < held_out else "train") for i, p in enumerate(paths)]
    return items
