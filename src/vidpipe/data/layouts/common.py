"""What the layouts share: rows, the index of files on disk, readers of untrusted files.

A listing of a large data set has 240,000 rows, so a row costs microseconds here: paths are checked
as text, and a folder is read once. Links are followed, and refused where they leave the root, when
a file is opened (`resolve_inside`).
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vidpipe.config.messages import nearest
from vidpipe.data.boxes import BoxRows
from vidpipe.data.config import DataConfig
from vidpipe.errors import VidpipeError

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in "mp4 m4v mov avi mkv webm mpg mpeg ts mts wmv flv 3gp ogv".split()  # noqa: SIM905
)
COLUMNS = ("path", "label", "split", "missing", "file", "row")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 2, 80
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)", re.MULTILINE)

Row = tuple[str, str, str, bool, str, int]
"""Relative path, label, split (train, val, test, or empty: to be drawn), whether the file is
missing, and the annotation file and row it is from (empty and 0: found on disk)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One video before extraction, or a span of one. `path` is relative to the data root, with forward
    slashes; `group` is empty without `data.group`. Of a span, its seconds, and the file and row it is
    from."""

    path: str
    label: str
    split: str
    group: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    where: str = ""


@dataclass(frozen=True)
class Listing:
    """What a data set has. `classes`: class index -> name, in the data set's own order."""

    items: list[Item]
    classes: tuple[str, ...]
    boxes: BoxRows | None = None
    """Of detection; `videos` are paths."""
    spans: bool = False
    """Whether items are spans of files."""


@dataclass(frozen=True)
class Found:
    """What a layout read, unchecked but for its own format. `classes`: null where it has no order.
    `groups`: of each row, where `data.group` is a column."""

    rows: list[Row]
    classes: tuple[str, ...] | None = None
    groups: list[str] | None = None
    boxes: BoxRows | None = None
    spans: list[tuple[float, float]] | None = None
    """Start and end of each row, seconds, where rows are spans; those of one file in order."""


def fail(message: str) -> VidpipeError:
    """To be raised; one line whatever a hostile file put into the message."""
    return VidpipeError(" ".join(message.split()))


def closest(name: str, valid: Sequence[str]) -> str:
    """As `nearest`, but never a list of four hundred names."""
    if len(valid) <= 20:
        return nearest(name, valid)
    near = get_close_matches(name, valid if len(valid) <= 10_000 else (), n=1, cutoff=0.5)
    return f"; nearest is {near[0]}" if near else f"; it has {len(valid)} others"


# -- paths --------------------------------------------------------------------------------------


def resolve_inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused when it leaves `root` (.., absolute paths, links)."""
    try:
        # Not Path.resolve, which raises for a circle of links: that is a file that is not there.
        path = Path(os.path.realpath(root / relative))
    except (OSError, ValueError):  # a zero byte
        raise fail(f"data.annotations: path {relative!r} is not a possible path") from None
    if not path.is_relative_to(root.resolve()):
        raise fail(f"data.annotations: path {relative!r} leaves data.root {root}")
    return path


def leaves_root(relative: str) -> bool:
    """As text only, without a look at the disk: what is left to check is links. For one path, or
    for any of several in lines."""
    return _OUTSIDE.search(relative) is not None


def walk(root: Path, folder: str = "") -> Iterator[str]:
    """Relative path of every video below `root/folder`, in no order; hidden names are skipped.

    Linked folders are not entered: they may be circles.
    """
    stack = [folder]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):  # .git, or what macOS leaves as ._name.mp4
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(f"{folder}{entry.name}/")
                    elif suffix(entry.name) in VIDEO_SUFFIXES and _is_file(entry):
                        yield folder + entry.name
        except OSError as error:
            raise fail(f"data.root: {root / folder}: {error.strerror}") from None


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Or a link to one: False where it leads nowhere or, for which `is_file` raises, in a circle."""
    try:
        return entry.is_file()
    except OSError:
        return False


def suffix(name: str) -> str:
    """As `Path(name).suffix.lower()`, at a tenth of its time."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def stem(name: str) -> str:
    """The last part of a path without its suffix, where that is a video's."""
    name = name.rpartition("/")[2]
    return name[: -len(suffix(name))] if suffix(name) in VIDEO_SUFFIXES else name


class VideoIndex:
    """Every video below a root by its stem, from one walk over the folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, str] = {}
        self._more: dict[str, list[str]] = {}
        for path in walk(root):
            if (known := self._paths.setdefault(stem(path), path)) != path:
                self._more.setdefault(stem(path), [known]).append(path)

    def find(self, name: str, *folders: str) -> str | None:
        """The path of the video with stem `name`; of several, the one below one of `folders`.

        Raises VidpipeError where that does not settle which one is meant.
        """
        if name not in self._more:
            return self._paths.get(name)
        paths = sorted(self._more[name])
        for folder in folders:
            near = [path for path in paths if plain(folder) in map(plain, path.split("/")[:-1])]
            paths = near or paths
        if len(paths) == 1:
            return paths[0]
        raise fail(
            f"data.root: {self.root}: {paths[0]!r} and {paths[1]!r} are both video {name!r}; "
            "leave one of them below data.root"
        )


def plain(folder: str) -> str:
    """Folder names of classes come with spaces or underscores."""
    return folder.replace("_", " ").lower()


# -- annotation files ---------------------------------------------------------------------------


def annotation_folders(root: Path, config: DataConfig, below: Sequence[str]) -> list[Path]:
    """Where to look: `data.annotations`, or the root, and those of its sub-folders `below`."""
    base = root if config.annotations is None else resolve_inside(root, config.annotations)
    if not base.is_dir():
        raise fail(
            f"data.annotations: {base}: no such folder; layout {config.layout} expects the folder "
            "of its annotation files, or null where it is data.root"
        )
    return [base, *(base / name for name in below if (base / name).is_dir())]


def find_file(root: Path, folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of `names` in the first of `folders` that has one; refused when a link out of root."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return resolve_inside(root, str((folder / name).absolute()))
    return None


def need_file(root: Path, folders: Sequence[Path], names: Sequence[str], layout: str) -> Path:
    found = find_file(root, folders, names)
    if found is None:
        below = "".join(f", {folder.name}/" for folder in folders[1:])
        raise fail(
            f"data.annotations: {folders[0]}: no {' or '.join(names[:2])} here{below}; layout "
            f"{layout} needs it: set data.annotations to the folder that has it"
        )
    return found


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise fail(f"data.annotations: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"data.annotations: {path}: not readable as UTF-8 text ({error})") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of every line that is not blank."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: numbers of 5000 digits, too
        raise fail(f"data.annotations: {path}: not valid JSON ({error})") from None


def read_records(path: Path, expected: str) -> list[Mapping[str, Any]]:
    """A JSON list of objects; row numbers in errors count from 1."""
    records = read_json(path)
    if not isinstance(records, list):
        raise fail(f"data.annotations: {path}: expected a list of objects {expected}")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise malformed(path, number, expected, record)
    return records


def malformed(path: Path, number: int, expected: str, got: object) -> VidpipeError:
    return fail(f"data.annotations: {path}: row {number}: expected {expected}, got {shown(got)!r}")


def shown(value: object) -> str:
    """The start of it, for a message."""
    return value[:120] if isinstance(value, str) else _SHORT.repr(value)
