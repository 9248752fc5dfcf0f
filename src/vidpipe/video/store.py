"""The frame store: a few large shards and a manifest; frame i of clip c in O(1).

`store/manifest.parquet` has one row a source video (schema below), `store/shard-00000.bin` the
canonical form of each clip, end to end; a row's `shard`, `offset` and `nbytes` find it. Only `ok`
rows have one. The file's metadata names the version, the tier and the classes in order.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file
from vidpipe.video.readers import Frames, read_h264, read_jpegs

VERSION = b"2"
_VERSION_KEY, _CLASSES_KEY, _TIER_KEY, _GROUP_KEY, _TASK_KEY = (
    f"vidpipe.manifest.{name}".encode() for name in ("version", "classes", "tier", "group", "task")
)
_BOXES_KEY = b"vidpipe.manifest.boxes_sha256"
SINGLE_LABEL = "single_label"
"""The task of a manifest that names none."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique
        ("path", pa.string()),  # relative to data.root
        ("label", pa.string()),  # of several, one text (`data/labels.py`)
        ("split", pa.string()),  # train or val
        ("status", pa.string()),  # ok or quarantined
        ("reason", pa.string()),  # machine-readable, empty when ok
        ("detail", pa.string()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("sha256", pa.string()),  # of the source file
        ("source_bytes", pa.int64()),
        ("shard", pa.int64()),
        ("offset", pa.int64()),  # bytes
        ("nbytes", pa.int64()),
    ]
)


SPAN = [
    pa.field(
        "first", pa.int64()
    ),  # frame of the file that the row begins with; `frames` are the row's
    pa.field("file_frames", pa.int64()),
    pa.field("start_s", pa.float64()),
    pa.field("end_s", pa.float64()),
]
"""Further columns where rows are spans of files; rows of one file have its shard, offset and nbytes."""
GROUP = pa.field("group", pa.string())
"""A further column where `data.group` was set: the person, source video, ... of each row."""


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.bin"


@dataclass(frozen=True)
class Manifest:
    rows: pd.DataFrame
    """All rows, `ok` and `quarantined`, columns as in SCHEMA, and perhaps GROUP."""
    classes: tuple[str, ...]
    """Class index -> name."""
    tier: str
    group: str | None = None
    """`data.group` of the extraction, where it was set: then there is a column GROUP."""
    task: str = SINGLE_LABEL
    """`data.task` of the extraction."""


def write_manifest(
    root: Path,
    rows: list[dict[str, Any]],
    classes: Sequence[str],
    tier: str = "compact",
    group: str | None = None,
    task: str = SINGLE_LABEL,
    boxes_sha256: str | None = None,
) -> None:
    """`boxes_sha256`: of `boxes.parquet` beside it (`data.boxes`), where the task has boxes."""
    metadata = {_VERSION_KEY: VERSION, _CLASSES_KEY: json.dumps(list(classes)), _TIER_KEY: tier}
    schema = SCHEMA
    if group is not None:
        schema, metadata[_GROUP_KEY] = SCHEMA.append(GROUP), group
    if rows and "first" in rows[0]:
        for field in SPAN:
            schema = schema.append(field)
    if task != SINGLE_LABEL:
        metadata[_TASK_KEY] = task
    if boxes_sha256 is not None:  # so that the manifest's hash stands for them, too
        metadata[_BOXES_KEY] = boxes_sha256
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata))
    with atomic_file(root / "manifest.parquet") as path:
        pq.write_table(table, path)


def read_manifest(
    root: Path | str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> Manifest:
    """`root`: a folder or an fsspec URL. `columns`: None for all; `optional`: those that it may have.

    Raises VidpipeError when it is missing, unreadable or of another version.
    """
    path = f"{root}/manifest.parquet"
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            if metadata.get(_VERSION_KEY) != VERSION:
                raise VidpipeError(
                    f"{path}: schema version {metadata.get(_VERSION_KEY)!r}, expected {VERSION!r}; "
                    "extract again"
                )
            names = list(columns or parquet.schema_arrow.names)
            if missing := set(names) - set(parquet.schema_arrow.names):
                raise VidpipeError(f"{path}: no column {min(missing)!r}; extract again")
            if columns is not None:
                names += [name for name in optional if name in parquet.schema_arrow.names]
            rows = parquet.read(names).select(names).to_pandas()
    except FileNotFoundError:
        raise VidpipeError(f"{path}: no such file; run `vidpipe extract` first") from None
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise VidpipeError(f"{path}: not a readable Parquet file ({error})") from None
    classes = tuple(json.loads(metadata[_CLASSES_KEY]))
    group = metadata[_GROUP_KEY].decode() if _GROUP_KEY in metadata else None
    task = metadata.get(_TASK_KEY, SINGLE_LABEL.encode()).decode()
    return Manifest(rows, classes, metadata[_TIER_KEY].decode(), group, task)


def manifest_sha256(root: Path | str) -> str:
    """Of the manifest's bytes: the identity of all that is in the store."""
    try:
        with fsspec.open(f"{root}/manifest.parquet", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise VidpipeError(
            f"{root}/manifest.parquet: no such file; run `vidpipe extract` first"
        ) from None


class _Shards:
    """Byte ranges of shards: memory-mapped where they are local, else read by fsspec."""

    def __init__(self, root: Path | str) -> None:
        self.root = str(root)
        self.remote = "://" in self.root
        self._maps: dict[int, mmap.mmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # maps belong to one process

    def path(self, shard: int) -> str:
        return f"{self.root}/{shard_name(shard)}"

    def read(self, shard: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Raises VidpipeError when the shard is missing or shorter than the ranges."""
        try:
            if self.remote:
                system, path = fsspec.core.url_to_fs(self.path(shard))
                starts, ends = zip(*ranges, strict=True)
                parts = system.cat_ranges(
                    [path] * len(ranges), list(starts), list(ends), on_error="raise"
                )
            else:
                if shard not in self._maps:
                    with open(self.path(shard), "rb") as file:  # noqa: PTH123
                        self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                parts = [self._maps[shard][start:end] for start, end in ranges]
        except (OSError, ValueError) as error:
            raise VidpipeError(
                f"{self.path(shard)}: {error}; run `vidpipe extract` again"
            ) from None
        if any(len(part) != end - start for part, (start, end) in zip(parts, ranges, strict=True)):
            raise VidpipeError(f"{self.path(shard)}: cut short; extract again")
        return parts


class _Decoded:
    """Whole decoded clips by row, up to `most` bytes; those that were asked for last stay."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.clips: OrderedDict[int, Frames] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "held": 0, "clips": OrderedDict()}  # of one process

    def fits(self, size: int) -> bool:
        return size <= self.most

    def get(self, clip: int) -> Frames | None:
        if clip in self.clips:
            self.clips.move_to_end(clip)
        return self.clips.get(clip)

    def keep(self, clip: int, frames: Frames) -> None:
        while self.clips and self.held + frames.nbytes > self.most:
            _, old = self.clips.popitem(last=False)
            self.held -= old.nbytes
        self.clips[clip] = frames
        self.held += frames.nbytes


class FrameStore:
    """Random access to canonical frames of the `ok` rows. Opens shards lazily: sent to workers.

    `root` is a folder or any fsspec URL. `cache_mb` keeps that much of whole decoded clips: a data
    set that fits is decoded once. `rows` has no texts but id, label and split: hundreds of thousands
    of clips are held by every worker.
    """

    COLUMNS = (
        *("id", "label", "split", "status", "frames", "fps", "width", "height"),
        *("shard", "offset", "nbytes"),
    )

    def __init__(self, root: Path | str, cache_mb: int = 0, reader: str = "pyav") -> None:
        self.root = root
        self.reader = reader
        manifest = read_manifest(root, self.COLUMNS, [field.name for field in SPAN])
        self.classes = manifest.classes
        self.tier, self.task = manifest.tier, manifest.task
        rows = manifest.rows
        self.rows = rows[rows.status == "ok"].drop(columns="status").reset_index(drop=True)
        self._cache = _Decoded(cache_mb * 2**20)
        self._shards = _Shards(root)
        self._look_up()

    @property
    def has_spans(self) -> bool:
        """Whether rows are spans of files."""
        return "first" in self.rows

    def _look_up(self) -> None:
        # Plain arrays: looking a number up in a data frame costs more than decoding a frame.
        self._shape = self.rows[["frames", "height", "width"]].to_numpy()
        self._place = self.rows[["shard", "offset", "nbytes"]].to_numpy()
        frames = self.rows.frames.to_numpy()
        self._first = self.rows["first"].to_numpy() if self.has_spans else np.zeros_like(frames)
        self._of_file = self.rows.file_frames.to_numpy() if self.has_spans else frames

    def with_rows(self, rows: pd.DataFrame) -> FrameStore:
        """Other rows, such as windows, on the same shards."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.rows, other._cache = rows.reset_index(drop=True), _Decoded(self._cache.most)
        other._look_up()
        return other

    def __len__(self) -> int:
        return len(self.rows)

    def split_as(self, train: Collection[str], val: Collection[str]) -> FrameStore:
        """The same clips, those with the ids `train` and `val` in these splits and the others in none.

        Shards and decoded clips are shared with this store.
        """
        where = {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}
        other = object.__new__(type(self))  # copy.copy would leave the decoded clips behind
        other.__dict__.update(self.__dict__)
        other.rows = self.rows.assign(split=self.rows.id.map(where).fillna(""))
        return other

    def num_frames(self, clip: int) -> int:
        return int(self._shape[clip, 0])

    def read(self, clip: int, indices: Sequence[int]) -> Frames:
        """Frames `indices` (any order, repeats allowed) of row `clip`: (len(indices), H, W, 3) RGB.

        Raises VidpipeError when the shard is missing, cut short or does not decode.
        """
        if (known := self._cache.get(clip)) is not None:
            return known[list(indices)]
        if not self._cache.fits(int(self._shape[clip].prod()) * 3):
            return self._decode(clip, indices)
        frames = self._decode(clip, range(self.num_frames(clip)))
        self._cache.keep(clip, frames)
        return frames[list(indices)]

    def _decode(self, clip: int, indices: Sequence[int]) -> Frames:
        length = self.num_frames(clip)
        if any(not 0 <= i < length for i in indices):
            raise IndexError(f"clip {self.rows.id[clip]} has frames 0 to {length - 1}")
        first, of_file = int(self._first[clip]), int(self._of_file[clip])
        indices = [first + i for i in indices]
        shard, offset, nbytes = (int(n) for n in self._place[clip])

        def ranges(parts: Sequence[tuple[int, int]]) -> list[bytes]:
            inside = all(0 <= start <= end <= nbytes for start, end in parts)
            if not inside:
                raise ValueError("its table of frames points outside the clip")
            return self._shards.read(shard, [(offset + a, offset + b) for a, b in parts])

        try:
            if self.tier == "fast":
                return read_jpegs(ranges, of_file, indices)
            return read_h264(ranges([(0, nbytes)])[0], indices, self.reader)
        except VidpipeError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VidpipeError(
                f"{self._shards.path(shard)}: clip {self.rows.id[clip]} cannot be read: {reason}"
            ) from error
