"""`vidpipe embed`: features of clips and frames, of raw videos or of the frame store: to search, to
cluster, to feed a model of one's own.

Raw videos take the way of `vidpipe predict`: decoded by guarded processes, or as a Ray Data job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.infra.console import console
from pipeline.tools.predict import GPU_BATCH, Job, all_rows, conclude, write_rows
from vidpipe.data.dataset import Clips, ViewSet, view_loader
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_file, atomic_folder
from vidpipe.inference.segments import Work, segments
from vidpipe.inference.stream import Prediction
from vidpipe.trained.embedder import Embedder
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.store import FrameStore

VERSION = b"1"
_VERSION_KEY, _ABOUT_KEY = b"vidpipe.features.version", b"vidpipe.features.about"
SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of a raw video; of the store, the clip's id
        ("model", pa.string()),  # empty where the source could not be read
        ("part", pa.string()),  # video or segment
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("status", pa.string()),  # ok or quarantined
        ("reason", pa.string()),  # machine-readable, as in the manifest; empty when ok
        ("detail", pa.string()),
        ("label", pa.string()),  # of the store
        ("split", pa.string()),
        ("feature", pa.list_(pa.float32())),  # (D,), what the head classifies
        ("frames", pa.list_(pa.list_(pa.float32()))),  # (T, D) of the frames, with --frames
    ]
)
ROWS = 1024
"""Of a row group, and of a shard of safetensors."""


@dataclass(frozen=True)
class EmbedJob(Job):
    """As `Job` of `vidpipe predict`, with features in place of predictions."""

    frames: bool = False
    schema: ClassVar[pa.Schema] = SCHEMA

    def predictor(self, models: Mapping[str, TrainedModel], device: torch.device) -> Embedder:
        options = (self.temporal_clips, self.spatial_crops, device, self.precision)
        return Embedder(models, *options, frames=self.frames)

    def row(self, found: Prediction, top: int) -> dict[str, Any]:
        """A row of SCHEMA. A video that was read by windows has their mean, and no frames."""
        row: dict[str, Any] = {
            **{"path": found.path, "model": found.model, "part": found.part},
            **{"start_s": round(found.start_s, 3), "end_s": round(found.end_s, 3)},
            **{"status": "quarantined" if found.reason else "ok", "reason": found.reason},
            **{"detail": found.detail, "label": "", "split": "", "feature": [], "frames": []},
        }
        if found.probabilities is not None:
            row["feature"] = found.probabilities[0].numpy()
            if self.frames and (self.window_s is None or found.part == "segment"):
                row["frames"] = list(found.probabilities[1:].numpy())
        return row


def run(
    job: EmbedJob,
    inputs: Sequence[str],
    out: Path,
    *,
    store: Path | None = None,
    ray: str | None = None,
    ray_above: int = 50_000,
    work: Work = segments,
) -> None:
    """Write a row for each segment and video of `inputs`, or each clip of `store`: to `out`, a .parquet
    file, or else a folder of safetensors shards with `index.parquet`.

    Raises VidpipeError where nothing could be read, and as `vidpipe predict` does.
    """
    with writer(out, job) as file:
        if store is not None:
            count = 0
            for row in of_store(job, store):
                file.add(row)
                count += 1
            console.print(f"{count} clips embedded")
            return
        with all_rows(job, inputs, 0, ray, ray_above, work) as (rows, classes):
            counts = write_rows(rows, file, first_model=next(iter(classes)))
    conclude(counts, "embed", "embedded")


def of_store(job: EmbedJob, folder: Path, only: str | None = None) -> Iterator[dict[str, Any]]:
    """Clips of a frame store, of each split or the one named, in the order of the manifest."""
    store = FrameStore(folder)
    embedder = job.open().predictor
    assert isinstance(embedder, Embedder)
    (name, trained), *more = embedder.models.items()
    if more:
        raise VidpipeError("--store: expected one --model")
    batch_size = GPU_BATCH if embedder.device.type == "cuda" else 1
    for split in dict.fromkeys(store.rows.split):
        if only not in (None, split):
            continue
        clips = Clips(store, split, store.classes)
        views = ViewSet(
            *(clips, trained.sampling, trained.transform),
            *(job.temporal_clips, job.spatial_crops),
        )
        for batch in view_loader(views, batch_size, device=embedder.device):
            found = embedder.of_views(batch["video"], name)
            for i, own in zip(batch["index"].tolist(), found, strict=True):
                at = store.rows.iloc[clips.rows[i]]
                span = {"start_s": 0.0, "end_s": round(at.frames / at.fps, 3)}
                row = job.row(Prediction(clips.name(i), name, probabilities=own), 0)
                yield {**row, **span, "label": at.label, "split": split}


# -- files --------------------------------------------------------------------------------------


class Writer(Protocol):
    def add(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def writer(out: Path, job: EmbedJob) -> Iterator[Writer]:
    """A writer to `out`, which appears whole or not at all."""
    about = {"models": [str(folder) for folder in job.folders], "frames": job.frames}
    schema = SCHEMA.with_metadata({_VERSION_KEY: VERSION, _ABOUT_KEY: json.dumps(about)})
    if out.suffix == ".parquet":
        with atomic_file(out) as path, pq.ParquetWriter(path, schema) as file:
            rows = _Parquet(file, schema)
            yield rows
            rows.close()
    elif out.suffix:
        raise VidpipeError(f"--out {out}: expected a name ending in .parquet, or that of a folder")
    elif out.exists() and not (out / "index.parquet").exists() and any(out.iterdir()):
        raise VidpipeError(f"--out {out}: there is something else in this folder; name another")
    else:
        with ExitStack() as stack:
            shards = _Shards(stack.enter_context(atomic_folder(out)), schema)
            yield shards
            shards.close()


class _Parquet:
    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.file, self.schema = file, schema
        self.rows: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROWS:
            self.close()

    def close(self) -> None:
        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []


class _Shards:
    """`features-00000.safetensors` with `feature` (n, D) and `frames` (n, T, D), and the rows that they
    are of: `index.parquet`, with the columns `shard` and `row` (-1: it has none) in place of tensors."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        kept = [field for field in schema if field.name not in ("feature", "frames")]
        places = [pa.field("shard", pa.int64()), pa.field("row", pa.int64())]
        places.append(pa.field("frames_row", pa.int64()))
        self.schema = pa.schema(kept + places, schema.metadata)
        self.index: list[dict[str, Any]] = []
        self.features: list[Any] = []
        self.frames: list[Any] = []
        self.shard = 0

    def add(self, row: Mapping[str, Any]) -> None:
        place = {"shard": -1, "row": -1, "frames_row": -1}
        if row["status"] == "ok":
            place.update(shard=self.shard, row=len(self.features))
            self.features.append(np.asarray(row["feature"], np.float32))
            if len(row["frames"]):
                place["frames_row"] = len(self.frames)
                self.frames.append(np.asarray([list(f) for f in row["frames"]], np.float32))
        self.index.append({k: v for k, v in row.items() if k in self.schema.names} | place)
        if len(self.features) == ROWS:
            self._write()

    def _write(self) -> None:
        from safetensors.numpy import save_file

        tensors = {"feature": np.stack(self.features)}
        if self.frames:
            tensors["frames"] = np.stack(self.frames)
        save_file(tensors, self.folder / f"features-{self.shard:05d}.safetensors")
        self.features, self.frames, self.shard = [], [], self.shard + 1

    def close(self) -> None:
        if self.features:
            self._write()
        table = pa.Table.from_pylist(self.index, schema=self.schema)
        pq.write_table(table, self.folder / "index.parquet")
