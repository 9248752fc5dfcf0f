"""What MLflow did not take, in files, until `vidpipe sync` or the same command sends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.infra.mlflow.entries import KINDS, Entry
from vidpipe.errors import VidpipeError
from vidpipe.files import read_json, write_json

FOLDER = Path(".vidpipe") / "unsent"
VERSION = 1


def file_of(stage: str, method: str, identity: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{stage}-{method}-{identity}")
    return (FOLDER / f"{name}.json").absolute()


def keep(file: Path, run: Mapping[str, Any], waiting: Sequence[Entry]) -> None:
    """Write what a run still has to tell. `run`: the fields of its TrackedRun."""
    entries = [asdict(entry) for entry in waiting]
    write_json(file, {"version": VERSION, "run": dict(run), "entries": entries})


def kept() -> list[Path]:
    """Oldest first."""
    return sorted(FOLDER.glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))


def read(file: Path) -> tuple[dict[str, Any], list[Entry]]:
    """The run's fields and its entries. Raises VidpipeError where the file is no such file."""
    raw = read_json(file)
    try:
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']}, expected {VERSION}")
        entries = [Entry(str(e["kind"]), dict(e["values"])) for e in raw["entries"]]
        if unknown := sorted({e.kind for e in entries} - KINDS.keys()):
            raise ValueError(f"unknown entry {unknown[0]!r}")
        return dict(raw["run"]), entries
    except (KeyError, TypeError, ValueError) as error:
        raise VidpipeError(
            f"{file}: not what a run left to send ({error}); remove it, and run its command again"
        ) from None
