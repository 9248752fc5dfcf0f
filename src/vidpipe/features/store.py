"""Frozen features on disk: shards of rows, a row the tensors of one view of one clip.

A shard is a safetensors file, written whole: tensors `0`, `1`, ... of (rows, ...), `flipped` (rows,),
and the names of its rows in the header. Its own name is a hash of those. So there is no index to keep in
step: a folder's content is what its shards say, and a shard is the commit of its rows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.features.place import Place
from vidpipe.files import atomic_file, disk_errors_named, remove_temporary

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 256
VERSION = 1
HEADER = "vidpipe.features"
SUFFIX = ".safetensors"


class FeatureStore:
    """The rows in `place`, a folder or an fsspec URL, found when it is made and by `scan`. Opens files
    lazily: sent to workers. A folder's files are mapped; at a URL a row's own bytes are read."""

    def __init__(self, place: Place | Path | str) -> None:
        self.place = place if isinstance(place, Place) else Place(place)
        self.files: list[str] = []
        self.places: dict[str, tuple[int, int]] = {}
        """Name of a row -> number of its file and its row there; (-1, -1): its clip is unreadable."""
        self._opened: dict[int, tuple[list[Tensor], Tensor]] = {}
        self._remote: dict[str, Header] = {}
        self.scan()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "places": {}}  # maps belong to one process

    def scan(self) -> None:
        """Look at the folder anew. A damaged shard counts for nothing: its rows are made again."""
        self.files, self.places, self._opened = [], {}, {}
        sizes = self.place.sizes() if self.place.path is None else {}
        names = sorted(sizes) if sizes else self.place.names()
        names = [name for name in names if name.endswith(SUFFIX) and name[0] != "."]
        if sizes:
            self._remote = remote_headers(self.place, {name: sizes[name] for name in names})
        for name in names:
            if (header := self._rows(name)) is None:
                what = f"{self.place}/{name}"
                logger.warning("%s: damaged, or of another version; its rows are made again", what)
                continue
            rows, unreadable = header
            number = len(self.files)
            self.files.append(name)
            self.places |= {name: (number, row) for row, name in enumerate(rows)}
            self.places |= dict.fromkeys(unreadable, (-1, -1))

    def shards(self, names: Sequence[str], row_bytes: int, multiple: int = 1) -> list[list[str]]:
        """Those of `names` that are not here, cut into shards of a multiple of rows."""
        missing = [name for name in dict.fromkeys(names) if name not in self.places]
        rows = min(SHARD_ROWS, SHARD_BYTES // row_bytes)
        rows = max(multiple, rows - rows % multiple)
        return [missing[start : start + rows] for start in range(0, len(missing), rows)]

    def file(self, names: Sequence[str]) -> str:
        """Name of the file of the shard of these rows."""
        return f"{shard_name(names)}{SUFFIX}"

    def whole(self, file: str) -> bool:
        """Whether a shard is there."""
        if self.place.path is None:
            sizes = self.place.sizes()
            self._remote |= remote_headers(self.place, {file: sizes[file]}) if file in sizes else {}
        return self._rows(file) is not None

    def _rows(self, file: str) -> tuple[list[str], list[str]] | None:
        """Names of a shard's rows, and of those whose clip is unreadable; None where it is not whole."""
        if self.place.path is None:
            return known_rows(file, self._remote[file].about) if file in self._remote else None
        try:
            with safe_open(self.place.path / file, framework="pt") as opened:
                return known_rows(file, opened.metadata() or {})
        except Exception:  # safetensors raises its own type for every corruption
            return None

    def write(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        flipped: Tensor,
        readable: Sequence[bool],
    ) -> None:
        """One shard: (rows, ...) of each tensor, of the rows that are `readable`.

        Raises VidpipeError where the disk is full or cannot be written.
        """
        keep = torch.tensor(readable, dtype=torch.bool)
        content = {str(i): x[keep].contiguous() for i, x in enumerate(tensors)}
        content["flipped"] = flipped[keep].to(torch.uint8)
        rows = [name for name, good in zip(names, readable, strict=True) if good]
        lost = [name for name, good in zip(names, readable, strict=True) if not good]
        # One text: safetensors writes several in an order that changes from run to run.
        about = {HEADER: json.dumps({"version": VERSION, "rows": rows, "unreadable": lost})}
        file = self.file([*rows, *lost])
        if self.place.path is None:
            self.place.write(file, save(content, about))
            return
        path = self.place.path / file
        with disk_errors_named(self.place.path):
            remove_temporary(path)
            with atomic_file(path) as temporary:
                try:
                    save_file(content, temporary, about)
                except Exception as error:  # safetensors has errors of its own
                    line = str(error).splitlines()[0]
                    raise VidpipeError(f"{path}: cannot be written ({line})") from error

    def read(self, file: int, row: int) -> tuple[list[Tensor], bool]:
        """The tensors of a row, (...), and whether its view is mirrored. Of a folder, views of a mapped
        file."""
        if self.place.path is None:
            name = self.files[file]
            header = self._remote[name]
            *own, flip = self.place.parts([(name, *part) for part in header.ranges(row)])
            return header.tensors(own), bool(flip[0])
        if file not in self._opened:
            path = self.place.path / self.files[file]
            try:
                with safe_open(path, framework="pt") as opened:
                    count = sum(name != "flipped" for name in opened.keys())  # noqa: SIM118
                    parts = [opened.get_tensor(str(i)) for i in range(count)]
                    self._opened[file] = parts, opened.get_tensor("flipped")
            except Exception as error:
                line = str(error).splitlines()[0]
                raise VidpipeError(f"{path}: {line}; remove it, and train again") from error
        parts, flipped = self._opened[file]
        return [x[row] for x in parts], bool(flipped[row])

    @contextmanager
    def locks(self) -> Iterator[ShardLocks]:
        """For several processes that fill the place together. Those of a URL know of each other on one
        machine; two machines may compute a shard twice, to the same bytes where they are alike."""
        if self.place.path is None:
            name = hashlib.sha256(str(self.place).encode()).hexdigest()[:16]
            lock = Path(tempfile.gettempdir()) / f"vidpipe-{os.getuid()}-features-{name}.lock"
        else:
            lock = self.place.path / ".lock"
        with disk_errors_named(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield ShardLocks(file)
        finally:
            os.close(file)


class ShardLocks:
    """A byte of one file for each shard: a killed process gives its own back."""

    def __init__(self, file: int) -> None:
        self.file = file

    def take(self, shard: str, wait: bool = False) -> bool:
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _byte(shard))
        except OSError:
            return False
        return True

    def give(self, shard: str) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, _byte(shard))


@dataclass(frozen=True)
class Header:
    """Of a safetensors file at a URL: where its tensors lie, so that a row can be read alone."""

    about: dict[str, str]
    layout: dict[str, tuple[torch.dtype, tuple[int, ...], int]]
    """Type, shape and first byte of each tensor."""

    @classmethod
    def of(cls, content: bytes, size: int) -> Header | None:
        """From the first bytes of a file of `size`; None where it is no such file, or cut short."""
        try:
            length = int.from_bytes(content[:8], "little")
            if length > min(len(content) - 8, size):
                return None
            found = json.loads(content[8 : 8 + length])
            about, ends, layout = found.pop("__metadata__", {}), [8 + length], {}
            for name, own in found.items():
                start, end = (8 + length + int(place) for place in own["data_offsets"])
                dtype, shape = DTYPES[own["dtype"]], tuple(map(int, own["shape"]))
                if end - start != torch.Size(shape).numel() * dtype.itemsize:
                    return None
                layout[name] = dtype, shape, start
                ends.append(end)
            numbered = [str(i) for i in range(len(layout) - 1)]
            whole = max(ends) == size and {*layout} == {"flipped", *numbered}
            return cls(about, layout) if whole else None
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def ordered(self) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
        """Of tensors 0, 1, ... and, last, `flipped`."""
        return [*(self.layout[str(i)] for i in range(len(self.layout) - 1)), self.layout["flipped"]]

    def ranges(self, row: int) -> list[tuple[int, int]]:
        """First byte and end of a row in each tensor of `ordered`."""
        found = []
        for dtype, shape, start in self.ordered:
            size = torch.Size(shape[1:]).numel() * dtype.itemsize
            found.append((start + row * size, start + (row + 1) * size))
        return found

    def tensors(self, parts: Sequence[bytes]) -> list[Tensor]:
        """A row of each tensor but `flipped`."""
        return [
            torch.frombuffer(bytearray(part), dtype=dtype).view(shape[1:])
            for part, (dtype, shape, _) in zip(parts, self.ordered, strict=False)
        ]


DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
HEAD_BYTES = 64 * 2**10
"""Enough for the header of a shard."""


def remote_headers(place: Place, sizes: Mapping[str, int]) -> dict[str, Header]:
    """Of the files of these sizes, those that are whole."""
    if not sizes:
        return {}
    heads = place.parts([(name, 0, min(size, HEAD_BYTES)) for name, size in sizes.items()])
    found = {
        name: Header.of(content, size)
        for (name, size), content in zip(sizes.items(), heads, strict=True)
    }
    return {name: header for name, header in found.items() if header is not None}


def known_rows(file: str, metadata: Mapping[str, str]) -> tuple[list[str], list[str]] | None:
    """What a shard's header says of its rows; None where that is not what its name says."""
    try:
        found = json.loads(metadata[HEADER])
        rows, unreadable, version = (found[key] for key in ("rows", "unreadable", "version"))
    except (ValueError, KeyError, TypeError):
        return None
    named = file == f"{shard_name([*rows, *unreadable])}{SUFFIX}"
    return (rows, unreadable) if named and version == VERSION else None


def _byte(shard: str) -> int:
    return int(shard[:12], 16)


def shard_name(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:24]


def refuse_full(root: Place, needed: int) -> None:
    """Raises VidpipeError where the disk of a folder has less than `needed` bytes free; a URL does not
    say how many it has."""
    if root.path is None:
        return
    place = root.path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise VidpipeError(
            f"train.cache_features: {gigabytes(needed)} of frozen features do not fit on the disk of "
            f"{root}, which has {gigabytes(free)} free; set train.cache_folder to a larger one, or "
            "cache_features to off"
        )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
