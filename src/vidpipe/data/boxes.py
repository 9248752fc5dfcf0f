"""Boxes of key frames, as a layout reads them and as a store holds them: ground truth and proposals.

`store/boxes.parquet` has a row for each action of each box of a person, and one for each proposal, in
the order of the annotation files, since the official metric goes by it. Manifest rows are whole videos:
a video is decoded once, however many key frames it has.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vidpipe.data.config import DetectionConfig
from vidpipe.errors import VidpipeError

FILE = "boxes.parquet"
VERSION = "1"
PROPOSAL = -1
_KEY = b"vidpipe.boxes"


@dataclass(frozen=True)
class BoxRows:
    """N rows of boxes.

    Args:
        videos: paths of the videos, or their ids in a store.
        video: (N,) index into `videos`.
        second: (N,) of the key frame, on the annotations' clock.
        boxes: (N, 4) x1, y1, x2, y2 as fractions of the frame.
        action: (N,) class index; PROPOSAL for a box that a detector found.
        score: (N,) of the detector; of ground truth the person's id.
        evaluated: class indices that the metric counts.
        config: how proposals are used, and when videos begin.
    """

    videos: tuple[str, ...]
    video: NDArray[np.int32]
    second: NDArray[np.int64]
    boxes: NDArray[np.float64]
    action: NDArray[np.int16]
    score: NDArray[np.float64]
    evaluated: tuple[int, ...]
    config: DetectionConfig

    def __len__(self) -> int:
        return len(self.video)

    def take(self, index: NDArray[Any]) -> BoxRows:
        """The rows of an index or a mask."""
        names = ("video", "second", "boxes", "action", "score")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    @property
    def key_frames(self) -> NDArray[np.int64]:
        """(N,) a number for each distinct video and second."""
        return self.video.astype(np.int64) * 2**41 + self.second

    def in_store(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[BoxRows, list[tuple[str, int, str]]]:
        """Those of the usable videos among manifest rows, by id; and each key frame that lies outside
        its
        video: (path, second, what the video has)."""
        known = {row["path"]: row for row in rows if row["status"] == "ok"}
        own = [known.get(path) for path in self.videos]
        there = np.array([row is not None for row in own], dtype=bool)
        kept = self.take(there[self.video]) if len(self) else self
        fps, frames = (
            np.array([0 if row is None else row[key] for row in own], dtype=np.float64)
            for key in ("fps", "frames")
        )
        start = self.config.start_s
        at = np.round((kept.second - start) * fps[kept.video])
        # The last second's own frame may be the one behind the end.
        outside = (at < 0) | (at > frames[kept.video])
        bad = []
        for video, second in sorted(set(zip(kept.video[outside], kept.second[outside]))):
            end = start + frames[video] / fps[video]
            bad.append((self.videos[video], int(second), f"the video has {start:g} to {end:g}"))
        kept = kept.take(~outside)
        ids = tuple("" if row is None else str(row["id"]) for row in own)
        return replace(kept, videos=ids), bad

    def to_bytes(self) -> bytes:
        """The same rows give the same bytes."""
        names = np.array(self.videos, dtype=object)
        edges = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        table = pa.table(
            {
                "video": pa.DictionaryArray.from_arrays(self.video, pa.array(names, pa.string())),
                "second": self.second,
                **{name: np.ascontiguousarray(values) for name, values in edges.items()},
                "action": self.action,
                "score": self.score,
            }
        )
        facts = {
            "version": VERSION,
            "evaluated": list(self.evaluated),
            "config": self.config.model_dump(mode="json"),
        }
        target = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_KEY: json.dumps(facts)}), target)
        return target.getvalue()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def read_box_rows(root: object) -> BoxRows:
    """Of a store: a folder or an fsspec URL. Raises VidpipeError where it has none that can be read."""
    path = f"{root}/{FILE}"
    try:
        with fsspec.open(path, "rb") as file:
            table = pq.read_table(io.BytesIO(file.read()))
        facts = json.loads((table.schema.metadata or {})[_KEY])
        video = table["video"].combine_chunks()
        if isinstance(video, pa.ChunkedArray):
            video = video.chunk(0) if video.num_chunks else pa.array([], pa.string())
        if not isinstance(video, pa.DictionaryArray):
            video = video.dictionary_encode()
        edges = [table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")]
        return BoxRows(
            tuple(video.dictionary.to_pylist()),
            video.indices.to_numpy().astype(np.int32),
            table["second"].to_numpy(),
            np.stack(edges, 1),
            table["action"].to_numpy(),
            table["score"].to_numpy(),
            tuple(facts["evaluated"]),
            DetectionConfig.model_validate(facts["config"]),
        )
    except FileNotFoundError:
        raise VidpipeError(f"{path}: no such file; run `vidpipe extract` again") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise VidpipeError(f"{path}: no table of boxes that can be read ({error})") from None
