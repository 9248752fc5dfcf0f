"""The frame store: a few large shards and a manifest; frame i of clip c in O(1).

`store/manifest.parquet` has one row a source video (schema below), `store/shard-00000.bin` the
canonical form of each clip, end to end; a row's `shard`, `offset` and `nbytes` find it. Only `ok`
rows have one. The file's metadata names the version, the tier and the classes in order.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import mmap
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file

logger = logging.getLogger(__name__)

VERSION = b"2"
_VERSION_KEY, _CLASSES_KEY, _TIER_KEY = (
    f"vidpipe.manifest.{name}".encode() for name in ("version", "classes", "tier")
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # unique
        ("path", pa.string()),  # relative to data.root
        ("label", pa.string()),
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


def shard_path(root: Path, shard: int) -> Path:
    return root / f"shard-{shard:05d}.bin"


@dataclass(frozen=True)
class Manifest:
    rows: pd.DataFrame
    """All rows, `ok` and `quarantined`, columns as in SCHEMA."""
    classes: tuple[str, ...]
    """Class index -> name."""
    tier: str


def write_manifest(
    root: Path, rows: list[dict[str, Any]], classes: Sequence[str], tier: str = "compact"
) -> None:
    metadata = {_VERSION_KEY: VERSION, _CLASSES_KEY: json.dumps(list(classes)), _TIER_KEY: tier}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    with atomic_file(root / "manifest.parquet") as path:
        pq.write_table(table, path)


def read_manifest(root: Path) -> Manifest:
    """Raises VidpipeError when it is missing, unreadable or of another version."""
    path = root / "manifest.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise VidpipeError(f"{path}: no such file; run `vidpipe extract` first") from None
    except (pa.ArrowException, OSError) as error:
        raise VidpipeError(f"{path}: not a readable Parquet file ({error})") from None
    metadata = table.schema.metadata or {}
    if metadata.get(_VERSION_KEY) != VERSION:
        raise VidpipeError(
            f"{path}: schema version {metadata.get(_VERSION_KEY)!r}, expected {VERSION!r}; "
            "extract again"
        )
    classes = tuple(json.loads(metadata[_CLASSES_KEY]))
    return Manifest(table.to_pandas(), classes, metadata[_TIER_KEY].decode())


class FrameStore:
    """Random access to canonical frames. Opens shards lazily, so it may be sent to workers.

    `cache_mb` keeps that much of whole decoded clips: a data set that fits is decoded once.
    """

    def __init__(self, root: Path, cache_mb: int = 0) -> None:
        self.root = root
        manifest = read_manifest(root)
        self.classes = manifest.classes
        self.tier = manifest.tier
        self.rows = manifest.rows[manifest.rows.status == "ok"].reset_index(drop=True)
        self._frames: list[int] = self.rows.frames.tolist()
        self._cache_bytes = cache_mb * 2**20
        self._cached_bytes = 0
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._shards: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # Maps and cached frames belong to one process.
        return {**self.__dict__, "_shards": {}, "_cache": OrderedDict(), "_cached_bytes": 0}

    def num_frames(self, clip: int) -> int:
        return self._frames[clip]

    def read(self, clip: int, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Frames `indices` (any order, repeats allowed) of row `clip`: (len(indices), H, W, 3) RGB.

        Raises VidpipeError when the shard is missing, cut short or does not decode.
        """
        if clip in self._cache:
            self._cache.move_to_end(clip)
            return self._cache[clip][list(indices)]
        row = self.rows.iloc[clip]
        size = int(row.frames) * int(row.width) * int(row.height) * 3
        if size > self._cache_bytes:
            return self._decode(row, indices)
        frames = self._decode(row, range(int(row.frames)))
        while self._cache and self._cached_bytes + size > self._cache_bytes:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= old.nbytes
        self._cache[clip] = frames
        self._cached_bytes += frames.nbytes
        return frames[list(indices)]

    def _decode(self, row: Any, indices: Sequence[int]) -> NDArray[np.uint8]:
        data = self._bytes(row)
        try:
            return read(data, indices)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VidpipeError(
                f"{shard_path(self.root, row.shard)}: clip {row.id} cannot be read: {reason}"
            ) from error

    def _bytes(self, row: Any) -> bytes:
        if row.shard not in self._shards:
            path = shard_path(self.root, row.shard)
            try:
                with path.open("rb") as file:
                    self._shards[row.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise VidpipeError(f"{path}: {error}; run `vidpipe extract` again") from None
        # By name: a pandas row has an attribute `nbytes` of its own.
        start, size = int(row["offset"]), int(row["nbytes"])
        data = self._shards[row.shard][start : start + size]
        if len(data) != size:
            raise VidpipeError(f"{shard_path(self.root, row.shard)}: cut short; extract again")
        return data


def read_decord(data: bytes, indices: Sequence[int]) -> NDArray[np.uint8]:
    import decord

    reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
    frames: NDArray[np.uint8] = reader.get_batch(list(indices)).asnumpy()
    return frames


def read_pyav(data: bytes, indices: Sequence[int]) -> NDArray[np.uint8]:
    """As `read_decord`, where decord has no wheel (arm64): one pass up to the last frame asked for."""
    import av

    wanted, found = set(indices), {}
    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].thread_count = 1
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if len(found) == len(wanted):
                break
    return np.stack([found[index] for index in indices])


def read(data: bytes, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Frames of one canonical clip, by decord where it can, else by PyAV: the same pixels.

    decord 0.6 has no wheel for arm64, and refuses a few narrow widths (16, 24, 48 and 72 pixels:
    it takes FFmpeg's padded rows for the picture's), so PyAV has the last word on every failure.
    """
    if decord_is_installed():
        try:
            return read_decord(data, indices)
        except Exception:
            logger.debug("decord failed on a clip; reading it with PyAV", exc_info=True)
    return read_pyav(data, indices)


@functools.cache
def decord_is_installed() -> bool:
    """Asked at the first read, not at import: the library imports without decord."""
    try:
        import decord  # noqa: F401
    except ImportError:
        logger.warning("decord is not installed here: the store is read with PyAV, which is slower")
        return False
    return True
