"""Where each stage reads and writes, below one folder (`--out`, by default the project itself)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidpipe.config.identity import config_hash
from vidpipe.errors import VidpipeError
from vidpipe.files import sha256
from vidpipe.params import Params, deciding_sections

if TYPE_CHECKING:  # a typo in an argument is answered before torch and pandas are imported
    from vidpipe.features.place import Place
    from vidpipe.training.state import Checkpoints
    from vidpipe.video.store import FrameStore


@dataclass(frozen=True)
class Workspace:
    root: Path

    @property
    def synth(self) -> Path:
        return self.root / "data" / "synth"

    @property
    def store(self) -> Path:
        return self.root / "data" / "store"

    def checkpoints(self, params: Params, run: str) -> Checkpoints:
        """The checkpoints of the training `run` (METHOD-HASH), with their copy at `train.storage`."""
        from vidpipe.training.state import Checkpoints

        url = params.train.storage
        mirror = f"{url.rstrip('/')}/{run}" if url else None
        keep_best = params.train.publish == "best"
        return Checkpoints(self.ray / run / "checkpoints", mirror, keep_best)

    def adapter(self, method: str) -> Path:
        return self.root / "models" / method / "adapter"

    def package(self, method: str) -> Path:
        return self.root / "models" / method / "package"

    def evaluation(self, method: str) -> Path:
        """Predictions and pictures: too large for git."""
        return self.root / "models" / method / "evaluation"

    @property
    def results(self) -> Path:
        return self.root / "results"

    def result(self, method: str, name: str) -> Path:
        """Small files for git: the same on every machine of a kind, so no times in them."""
        return self.results / method / name

    def timing(self, method: str) -> Path:
        """Measured times, ignored by git and DVC: they differ on every run."""
        return self.results / method / "timing.json"

    def features(self, params: Params) -> Place:
        """Frozen features that trainings share (`train.cache_features`)."""
        from vidpipe.features.place import Place

        return Place(params.train.cache_folder or self.root / "features")

    @property
    def ray(self) -> Path:
        """Ray's own storage: outside every DVC output, which DVC deletes before a rerun."""
        return (self.root / "ray").resolve()


def open_store(workspace: Workspace, params: Params) -> FrameStore:
    """The frame store that training, evaluation and export read.

    Raises VidpipeError where there is none, or one for another task.
    """
    from vidpipe.video.store import FrameStore

    root = params.data.store or workspace.store
    store = FrameStore(root, params.train.cache_mb, params.data.reader)
    if store.task != params.data.task:
        raise VidpipeError(
            f"data.task: {params.data.task}, but {store.root} was extracted for {store.task}; set it to "
            f"{store.task}, or run `vidpipe extract` again"
        )
    return store


def data_hash(workspace: Workspace, params: Params) -> str:
    """Identity of the extracted data: its manifest holds every source file's hash."""
    from vidpipe.video.store import manifest_sha256

    return manifest_sha256(params.data.store or workspace.store)


def clips_hash(workspace: Workspace, params: Params, split: str = "val") -> str:
    """Identity of a split's clips: their ids, labels and source files, whatever the other split has."""
    from vidpipe.video.store import read_manifest

    columns = ("id", "label", "split", "status", "sha256")
    rows = read_manifest(params.data.store or workspace.store, columns).rows
    own = rows[(rows.split == split) & (rows.status == "ok")].sort_values("id")
    digest = hashlib.sha256()
    for row in own.itertuples():
        digest.update(f"{row.id}\t{row.label}\t{row.sha256}\n".encode())
    return digest.hexdigest()


def training_hash(
    params: Params,
    method: str,
    workspace: Workspace,
    weights_sha256: str,
    data: str | None = None,
) -> str:
    """Identity of one training: the same settings, data, backbone and start give the same name.

    `data`: that of the training clips, where they are not the store's own split.
    """
    sections = deciding_sections(params, "train", method)
    if params.train.starts_from is not None:  # what lies there decides, wherever it lies
        began = sha256(Path(params.train.starts_from) / "adapter.safetensors")
        sections["train"] = params.train.model_copy(update={"starts_from": began})
    return config_hash(method, sections, data or data_hash(workspace, params), weights_sha256)


def folder_hash(folder: Path) -> str:
    """A hash of names and bytes of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()
