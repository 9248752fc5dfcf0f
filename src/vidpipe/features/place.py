"""Where frozen features lie: a folder, or any fsspec URL, as a frame store may.

An object store has neither rename nor locks. What is written there is one object, which is there whole
or not at all, and a file that is cut short counts for nothing (`store.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vidpipe.errors import VidpipeError
from vidpipe.files import disk_errors_named, read_json, write_json

LOCAL = ("file://", "local://")


class Place:
    """A folder and what is in it by name. `path`: the folder, of file:// too; None at any other URL.

    Raises VidpipeError, naming the URL, where a store does not answer or refuses.

    Example:
        >>> place = Place("memory://features") / "train-0"
        >>> place.write_json("about.json", {"version": 1})
        >>> place.names(), place.read_json("about.json")["version"], place.path
        (['about.json'], 1, None)
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.path: Path | None = None
        if self.root.startswith(LOCAL):
            self.path = Path(str(LocalFileSystem._strip_protocol(self.root)))
        elif "://" not in self.root:
            self.path = Path(root)
        else:
            self.root = self.root.rstrip("/")

    def __str__(self) -> str:
        return self.root

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.root}/{name}" if self.path is None else self.path / name)

    @property
    def name(self) -> str:
        return self.root.rpartition("/")[2]

    def names(self) -> list[str]:
        """Of the files and folders in it, sorted; none where it does not exist."""
        if self.path is None:
            return sorted(self.sizes())
        return sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []

    def sizes(self) -> dict[str, int]:
        """At a URL: bytes of each file in it by name; 0 of a folder."""
        with self._explained("read") as (system, path):
            system.invalidate_cache()
            try:
                found = system.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            return {own["name"].rstrip("/").rpartition("/")[2]: own["size"] or 0 for own in found}

    def parts(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """At a URL: bytes `start` to `end` of each (name, start, end)."""
        with self._explained("read") as (system, path):
            names, starts, ends = zip(*ranges, strict=True)
            paths = [f"{path}/{name}" for name in names]
            found: list[bytes] = system.cat_ranges(
                paths, list(starts), list(ends), on_error="raise"
            )
        if short := [own for own, part in zip(ranges, found) if len(part) != own[2] - own[1]]:
            raise VidpipeError(
                f"train.cache_folder: {self.root}/{short[0][0]}: cut short; remove it, and train again"
            )
        return found

    def write(self, name: str, content: bytes) -> None:
        """At a URL."""
        with self._explained("written") as (system, path):
            system.makedirs(path, exist_ok=True)
            system.pipe_file(f"{path}/{name}", content)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        if self.path is None:
            self.write(name, json.dumps(value, indent=2, sort_keys=True).encode())
        else:
            with disk_errors_named(self.path):
                write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        if self.path is not None:
            return read_json(self.path / name)
        with self._explained("read") as (system, path):
            return json.loads(system.cat_file(f"{path}/{name}"))

    @contextmanager
    def _explained(self, what: str) -> Iterator[tuple[Any, str]]:
        try:
            yield fsspec.core.url_to_fs(self.root)
        # Each kind of store has exceptions of its own, which share no base but this.
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise VidpipeError(
                f"train.cache_folder: {self.root} cannot be {what} ({line}); mend the URL or its "
                "credentials, or set it to a folder, and run the same command again to go on"
            ) from error
