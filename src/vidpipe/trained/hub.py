"""Models on the Hugging Face Hub: `hf://OWNER/NAME@REVISION` becomes a local folder, or is refused.

A repository is a stranger's folder. Of it, only the files of `FILES` are fetched, which hold text and
numbers; one that also has a format that can run code is refused as a whole. A revision is resolved to
its commit once, and every file is of that commit.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vidpipe.backbones.config import BackboneConfig
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.files import DISK, disk_errors_named, sha256
from vidpipe.text import printable
from vidpipe.trained.card import (
    ADAPTER,
    MAX_BYTES,
    OWN_BACKBONE,
    TENSORS,
    read_card,
)

PREFIX = "hf://"
README = "README.md"
FILES = ("config.json", *TENSORS.values(), OWN_BACKBONE, "parity.json", "MODEL_CARD.md", README)
"""What a model folder on the hub may hold of ours; nothing else is fetched."""
RUNS_CODE = frozenset(
    {".pkl", ".pickle", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}
    | {".h5", ".keras", ".msgpack", ".py", ".so", ".dill", ".cloudpickle"}
)
"""Formats that can run what their author put there when they are opened."""
COMMIT = re.compile("[0-9a-f]{40}")
DONE = ".vidpipe-checked"
"""Written beside the files in the cache, once all are there and are what the hub recorded."""


@dataclass(frozen=True)
class HubAddress:
    """A repository of models and its revision: a branch, a tag or a commit; None: the main branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def at(self, commit: str) -> HubAddress:
        return HubAddress(self.repo, commit)


def is_address(text: str | Path) -> bool:
    """Whether `text` names a repository of the hub; a Path never does."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """`hf://OWNER/NAME@REVISION`, with or without the prefix and the revision.

    Raises VidpipeError for anything else.
    """
    repo, _, revision = text.removeprefix(PREFIX).partition("@")
    parts = repo.split("/")
    name = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
    good = (
        len(parts) == 2
        and all(re.fullmatch(name, part) and ".." not in part for part in parts)
        and (revision or "@" not in text)
        and not re.search(r"\s|\.\.|[\x00-\x1f~^:?*\[\\]", revision)
    )
    if not good:
        raise VidpipeError(
            f"{printable(text)[:200]}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return HubAddress(repo, revision or None)


def client() -> Any:
    """The hub's client for HF_ENDPOINT (default: huggingface.co), with the user's own token."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vidpipe")


@contextmanager
def in_one_line(where: str) -> Iterator[None]:
    """What the hub's client raises meanwhile, as a VidpipeError of one line that begins with `where`."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    said_before = logging.get_verbosity()
    logging.set_verbosity_error()  # of its attempts, of files that are the same as before
    try:
        yield
    except VidpipeError:
        raise
    except errors.RevisionNotFoundError:
        raise VidpipeError(f"{where}: the repository has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise VidpipeError(
            f"{where}: no such repository, or a private one that this token may not read; "
            "`hf auth login` sets another"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = _line(error.server_message or "") or f"HTTP {status}"
        if status in (401, 403):
            raise VidpipeError(
                f"{where}: the hub refuses this ({said}); `hf auth login` with a token that may do it"
            ) from None
        raise VidpipeError(f"{where}: the hub answers {status} ({said}); try again later") from None
    except Exception as error:  # of its transport, of Xet, of an answer that is none
        if isinstance(error, OSError) and error.errno in DISK:
            with disk_errors_named(Path(where)):
                raise
        raise VidpipeError(
            f"{where}: no usable answer of the hub ({type(error).__name__}: {_line(str(error))})"
        ) from error
    finally:
        logging.set_verbosity(said_before)


def fetch(text: str, weights: str | None = None) -> tuple[Path, HubAddress]:
    """The model folder at `text`, in the hub's own cache, and its address with the commit.

    Args:
        text: `hf://OWNER/NAME@REVISION`.
        weights: where an adapter's backbone is, if the repository does not hold or name it.

    Raises:
        VidpipeError: in one line: no such repository or revision, no answer, a file that can run code or
            lies outside the folder, a file that is not what the hub recorded, no model, or an adapter
            whose backbone has to be named. What does not fit is refused as `vidpipe.load` does.
    """
    address = parse_address(text)
    where = str(address)
    folder = _cached(address)
    if folder is None:
        with in_one_line(where):
            folder, address = _download(address, where)
    card = read_card(folder)
    if card.format == ADAPTER and weights is None and not _travels(card.backbone):
        raise ArgumentError(
            "weights",
            f": {where} is an adapter of {card.backbone.name} and does not hold that backbone; name a "
            f"file of its weights (sha256 of the tensors {card.backbone.weights_sha256[:12]})",
        )
    return folder, address


def _travels(backbone: BackboneConfig) -> bool:
    """Whether whoever has the adapter's folder has the backbone. Never a path that a stranger names."""
    return backbone.weights == OWN_BACKBONE or backbone.hub_tag is not None


def _cached(address: HubAddress) -> Path | None:
    """The folder of a commit that was fetched before: it needs no answer of the hub."""
    from huggingface_hub import try_to_load_from_cache

    commit = address.revision or ""
    if not COMMIT.fullmatch(commit):
        return None
    done = try_to_load_from_cache(address.repo, DONE, revision=commit)
    return Path(done).parent if isinstance(done, str) else None


def _download(address: HubAddress, where: str) -> tuple[Path, HubAddress]:
    api = client()
    info = api.model_info(address.repo, revision=address.revision, files_metadata=True)
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit):
        raise VidpipeError(f"{where}: the hub names no commit of it")
    listed = {str(file.rfilename): file for file in info.siblings or ()}
    refuse_files(where, listed)
    wanted = [name for name in FILES if name in listed]
    for name in wanted:
        if not name.endswith(".safetensors") and (listed[name].size or 0) > MAX_BYTES:
            raise VidpipeError(f"{where}: {name} is larger than any description of a model")
    if address.revision is None:
        warnings.warn(
            f"{where}: no revision is named, so its main branch is taken, now {commit[:12]}; "
            f"{address.at(commit)} stays the same",
            stacklevel=5,
        )
    folder = Path()
    for name in wanted:
        file = Path(api.hf_hub_download(address.repo, name, revision=commit))
        large = listed[name].lfs
        if large is not None and (found := sha256(file)) != large.sha256:
            file.resolve().unlink()  # of the cache, where it would be found again
            raise VidpipeError(
                f"{where}: {name} is not what the hub recorded (sha256 {found[:12]}, expected "
                f"{large.sha256[:12]}); fetch it again"
            )
        folder = file.parent
    (folder / DONE).touch()
    return folder, address.at(commit)


def refuse_files(where: str, names: Any) -> None:
    """Raise one line for a path outside the folder, a format that can run code, or no model at all."""
    for name in sorted(names):
        shown = printable(name)[:200]
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise VidpipeError(f"{where}: has the path {shown}, which leads out of the folder")
        if path.suffix.lower() in RUNS_CODE:
            raise VidpipeError(
                f"{where}: has {shown}, a format that can run code when it is opened; a model of "
                "vidpipe is .safetensors and .json only"
            )
    if "config.json" not in names or not set(TENSORS.values()) & set(names):
        raise VidpipeError(
            f"{where}: no model of vidpipe; expected config.json and {' or '.join(TENSORS.values())}"
        )


def _line(text: str) -> str:
    return printable(" ".join(text.split()))[:240]
