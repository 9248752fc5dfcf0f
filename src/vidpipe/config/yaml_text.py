"""The one reader of YAML: params.yaml, recipes, values of the command line. Whoever wrote it, reading it
is quick and ends in plain values or in one line.

PyYAML's safe loader makes no objects, and still has ways to be kept busy: aliases of aliases stand for
billions of values, deep nesting ends in Python's recursion limit, a number of thousands of digits in a
ValueError. So sizes are checked on the events, before anything is built.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from vidpipe.errors import VidpipeError

LARGEST_FILE = 2**20
"""Bytes."""
DEEPEST = 50
MOST_VALUES = 100_000
"""Values of a document, those that its aliases stand for counted each time."""


# libyaml's, where PyYAML was built with it, is ten times faster.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc]
    """Refuses a key that is given twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


def parse_yaml(text: str, where: str) -> Any:
    """The plain values of one YAML document. Raises VidpipeError, whose line starts with `where`."""
    if len(text) > LARGEST_FILE:
        raise VidpipeError(f"{where}: expected at most {LARGEST_FILE // 2**10:,} KiB of YAML")
    try:
        _check_size(text)
        return yaml.load(text, Loader=_Loader)
    except _TooLarge as error:
        raise VidpipeError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a date that does not exist, a number of thousands of digits.
        line = " ".join(str(error).split())[:300]
        raise VidpipeError(f"{where}: not valid YAML: {line}") from None


def read_yaml_file(path: Path) -> Any:
    """As `parse_yaml`, of a file. Raises FileNotFoundError where there is none."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VidpipeError(f"{path}: expected a file of YAML, but it is none")
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        return parse_yaml(content.decode("utf-8"), str(path))
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        line = f"not UTF-8 text at byte {error.start}"
        raise VidpipeError(f"{path}: not valid YAML: {line}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise VidpipeError(f"{str(path)!r}: cannot be read: {reason}") from None


class _TooLarge(Exception):
    """What is too much, as a sentence."""


def _check_size(text: str) -> None:
    """Count values and levels on the parser's events, which come one by one and without recursion."""
    depth = total = 0
    sizes: dict[str, int] = {}
    """Values within each anchor so far closed."""
    open_: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Safe):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            depth, total = depth + 1, total + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            depth -= 1
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise _TooLarge(f"alias *{event.anchor} stands within what it names")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if depth > DEEPEST:
            raise _TooLarge(f"nested more than {DEEPEST} levels deep")
        if total > MOST_VALUES:
            raise _TooLarge(f"more than {MOST_VALUES:,} values, those of aliases counted")
