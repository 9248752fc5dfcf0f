"""Checkpoints kept a second time, at any fsspec URL: for a machine that does not come back.

Object stores have no rename. A checkpoint counts from the moment its `complete.json` is there, which
is written last and removed first, and names each file's size and hash.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, sha256

MARK = "complete.json"


class Mirror:
    """`url`: where the checkpoints of one training lie, each in a folder of its name.

    Everything here raises VidpipeError, naming the URL, when the store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._explained("opened"):
            self.system, self.root = fsspec.core.url_to_fs(self.url)

    def names(self) -> list[str]:
        """Of the complete checkpoints, the newest last."""
        with self._explained("read"):
            self.system.invalidate_cache()
            if not self.system.exists(self.root):
                return []
            found = self.system.glob(f"{self.root}/*/{MARK}")
        return sorted(path.split("/")[-2] for path in found)

    def push(self, checkpoint: Path) -> None:
        target = f"{self.root}/{checkpoint.name}"
        files = sorted(p for p in checkpoint.iterdir() if p.is_file())
        card = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        with self._explained("written"):
            self.system.makedirs(target, exist_ok=True)
            for file in files:
                self.system.put_file(str(file), f"{target}/{file.name}")
            self.system.pipe_file(f"{target}/{MARK}", json.dumps(card).encode())

    def keep(self, names: Collection[str]) -> None:
        """Remove all checkpoints but these."""
        for name in self.names():
            if name not in names:
                with self._explained("written"):
                    self.system.rm_file(f"{self.root}/{name}/{MARK}")
                    self.system.rm(f"{self.root}/{name}", recursive=True)

    def pull(self, name: str, folder: Path) -> None:
        """Checkpoint `name` into `folder`, whole or not at all, and proven to be what was pushed."""
        source = f"{self.root}/{name}"
        with atomic_folder(folder / name) as temporary:
            with self._explained("read"):
                card = json.loads(self.system.cat_file(f"{source}/{MARK}"))
                for file in card:
                    self.system.get_file(f"{source}/{file}", str(temporary / Path(file).name))
            for file, known in card.items():
                if sha256(temporary / Path(file).name) != known["sha256"]:
                    raise VidpipeError(
                        f"train.storage: {self.url}/{name}/{file} is not what was saved there; remove "
                        f"{self.url}/{name} to go on from the checkpoint before it"
                    )

    def remove(self) -> None:
        with self._explained("written"):
            if self.system.exists(self.root):
                self.system.rm(self.root, recursive=True)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        # Each kind of store has exceptions of its own, which share no base but this.
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise VidpipeError(
                f"train.storage: {self.url} cannot be {what} ({line}); checkpoints on this machine are "
                "intact: mend the URL or its credentials and run the same command again to go on"
            ) from error
