"""Writing a frame store so that a kill at any moment loses nothing and changes no byte.

Clips come in any order and are packed in the order of the list. While the work lasts, a folder beside
the store holds `parts/` (a clip each, until its shard is full), `store/` (full shards) and `rows/` (what
each full shard covers; written last, so it is the shard's commit). Run again, the writer goes on from
there; `finish` moves the whole store to its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file, read_json, write_json
from vidpipe.video.extract import Extracted, quarantined
from vidpipe.video.store import SINGLE_LABEL, shard_name, write_manifest

HEADER = struct.Struct("<4sIIQ")  # magic, CRC of the rest, bytes of the row, bytes of the clip
MAGIC = b"vpp2"
Stat = tuple[int, int]


class StoreWriter:
    """`listed`: the manifest columns known beforehand (id, path, label, split, perhaps group), one dict
    a video.

    `stats[i]` is (bytes, mtime_ns) of video i now, (0, 0) where it is missing: work on a file that
    has changed since is done again. `timeout_s` likewise: a longer one retries what timed out.
    """

    def __init__(
        self,
        out: Path,
        key: str,
        listed: Sequence[dict[str, Any]],
        stats: Sequence[Stat],
        *,
        shard_bytes: int,
        timeout_s: float,
    ) -> None:
        self.out, self.listed, self.stats = out, listed, stats
        self.shard_bytes, self.timeout_s = shard_bytes, timeout_s
        self.work = out.parent / f".{out.name}.work-{key}"
        self._old = out.parent / f".{out.name}.old"
        out.parent.mkdir(parents=True, exist_ok=True)
        # The folder itself: a lock file would be left behind.
        self._lock = os.open(out.parent, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise VidpipeError(f"{out.parent}: another extraction is writing here") from None
        for other in out.parent.glob(f".{out.name}.work-*"):
            if other != self.work:
                shutil.rmtree(other)  # of other videos or settings
        self.rows: list[dict[str, Any]] = []
        """Of the videos in committed shards."""
        self._seen: dict[str, str] = {}  # source hash -> path of its first video
        self._commits = 0
        self._parts: dict[int, tuple[dict[str, Any], int]] = {}  # row and bytes of the clip
        self._open: list[dict[str, Any]] = []  # rows of the shard that is filling up
        self._offset = 0  # bytes in it
        # Killed after the store was moved, before the work was removed.
        self.finished = self.work.exists() and not self._store.exists() and out.exists()
        if self.finished:
            self._clean()
        else:
            for folder in (self._store, self._parts_folder, self._rows_folder):
                folder.mkdir(parents=True, exist_ok=True)
            self._resume()

    @property
    def _store(self) -> Path:
        return self.work / "store"

    @property
    def _parts_folder(self) -> Path:
        return self.work / "parts"

    @property
    def _rows_folder(self) -> Path:
        return self.work / "rows"

    def pending(self) -> list[int]:
        """Indices of the videos whose clips are still to be given to `add`."""
        packed = len(self.rows) + len(self._open)
        return [i for i in range(packed, len(self.listed)) if i not in self._parts]

    def add(self, index: int, clip: Extracted) -> None:
        row = {**clip.row, "_stat": list(self.stats[index]), "_timeout_s": self.timeout_s}
        _write_part(self._part(index), row, clip.data)
        self._parts[index] = (row, len(clip.data))
        self._pack()

    def finish(
        self,
        classes: Sequence[str],
        tier: str,
        group: str | None = None,
        task: str = SINGLE_LABEL,
        boxes: tuple[str, bytes] | None = None,
        spans: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
    ) -> list[dict[str, Any]]:
        """Commit what is left, write the manifest (by path), put the store in its place; all rows.

        `boxes`: name and content of a file of the store that the manifest vouches for. `spans`: the rows
        of the spans of a file, from the row of the file.
        """
        if missing := self.pending():
            raise ValueError(f"{len(missing)} videos have not been added")
        self._commit()
        rows = [{k: v for k, v in row.items() if not k.startswith("_")} for row in self.rows]
        rows.sort(key=lambda row: row["path"])
        if spans is not None:
            rows = [own for row in rows for own in spans(row)]
        digest = None
        if boxes is not None:
            name, content = boxes
            (self._store / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
        write_manifest(self._store, rows, classes, tier, group, task, digest)
        shutil.rmtree(self._old, ignore_errors=True)
        if self.out.exists():
            self.out.replace(self._old)
        self._store.replace(self.out)
        self._clean()
        return rows

    def close(self) -> None:
        """Give the lock back; unfinished work stays for the next try."""
        os.close(self._lock)

    def all_rows(self) -> list[dict[str, Any]]:
        """Of every video, before `finish`: also those of the shard that is filling up."""
        return self.rows + self._open

    # -- packing ---------------------------------------------------------------------------------

    def _part(self, index: int) -> Path:
        return self._parts_folder / str(index)

    def _rows_file(self, commit: int) -> Path:
        return self._rows_folder / f"{commit:05d}.json"

    def _pack(self) -> None:
        """Take up parts in the order of the list, as far as they go without a gap."""
        while (index := len(self.rows) + len(self._open)) in self._parts:
            measured, nbytes = self._parts.pop(index)
            row = {**self.listed[index], **measured, "shard": -1, "offset": 0, "nbytes": 0}
            if row["status"] == "ok":
                # The same bytes twice would leak from train into val, or count twice.
                first = self._seen.setdefault(row["sha256"], row["path"])
                if first != row["path"]:
                    detail = f"same bytes as {first}"
                    copy = quarantined("duplicate", detail, row["sha256"], row["source_bytes"])
                    row.update(copy.row)
                else:
                    if self._offset and self._offset + nbytes > self.shard_bytes:
                        self._commit()
                    row.update(shard=self._commits, offset=self._offset, nbytes=nbytes)
                    self._offset += nbytes
            self._open.append(row)

    def _commit(self) -> None:
        """The open shard as one file, then its rows; after that its parts are not needed."""
        if not self._open:
            return
        start = len(self.rows)
        with atomic_file(self._store / shard_name(self._commits)) as path, path.open("wb") as file:
            for index, row in enumerate(self._open, start):
                if row["status"] == "ok":
                    found = _read_part(self._part(index), with_data=True)
                    if found is None:
                        raise VidpipeError(
                            f"{self._part(index)}: damaged since it was written; run extract again"
                        )
                    file.write(found[2])
            file.flush()
        write_json(self._rows_file(self._commits), self._open)
        for index in range(start, start + len(self._open)):
            self._part(index).unlink(missing_ok=True)
        self.rows += self._open
        self._open, self._offset = [], 0
        self._commits += 1

    # -- going on after a kill -------------------------------------------------------------------

    def _resume(self) -> None:
        while (file := self._rows_file(self._commits)).is_file():
            rows = read_json(file)
            shard = self._store / shard_name(self._commits)
            whole = shard.is_file() and shard.stat().st_size == sum(row["nbytes"] for row in rows)
            if not whole or not all(self._fresh(len(self.rows) + i, r) for i, r in enumerate(rows)):
                break
            self.rows += rows
            self._commits += 1
            for row in rows:
                if row["status"] == "ok":
                    self._seen[row["sha256"]] = row["path"]
        # Whatever follows, or was half done, is made anew.
        for folder, last in (
            (self._rows_folder, f"{self._commits:05d}.json"),
            (self._store, shard_name(self._commits)),
        ):
            for file in folder.iterdir():
                if file.name >= last or file.name.startswith("."):
                    file.unlink()
        for file in self._parts_folder.iterdir():
            index = int(file.name) if file.name.isdecimal() else -1
            found = _read_part(file) if index >= len(self.rows) else None
            if found is None or not self._fresh(index, found[0]):
                file.unlink()
            else:
                self._parts[index] = found[:2]
        self._pack()

    def _fresh(self, index: int, row: dict[str, Any]) -> bool:
        """Made from the file as it is now, under limits that would not be kinder now."""
        if index >= len(self.stats) or tuple(row["_stat"]) != tuple(self.stats[index]):
            return False
        return not (row["reason"] == "timeout" and row["_timeout_s"] < self.timeout_s)

    def _clean(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


def _write_part(path: Path, row: dict[str, Any], data: bytes) -> None:
    """No flush to the disk: a checksum tells a torn part, which is then made again."""
    text = json.dumps(row).encode()
    header = HEADER.pack(MAGIC, zlib.crc32(data, zlib.crc32(text)), len(text), len(data))
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(header + text + data)
    temporary.replace(path)


def _read_part(path: Path, with_data: bool = False) -> tuple[dict[str, Any], int, bytes] | None:
    """Row, bytes of the clip, and the clip itself if asked for; None if the part is not whole."""
    try:
        content = path.read_bytes()
        magic, checksum, row_bytes, clip_bytes = HEADER.unpack_from(content)
    except (OSError, struct.error):
        return None
    body = memoryview(content)[HEADER.size :]
    if magic != MAGIC or len(body) != row_bytes + clip_bytes or zlib.crc32(body) != checksum:
        return None
    data = bytes(body[row_bytes:]) if with_data else b""
    return json.loads(bytes(body[:row_bytes])), clip_bytes, data
