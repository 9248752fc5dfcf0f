"""Extraction of a few small videos, with decoders that fail."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one

SMALL = ExtractConfig(short_side=32, shard_mb=0.03, max_bad_fraction=0.5)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir())
    return hashlib.sha256(
        b"".join(path.name.encode() + path.read_bytes() for path in files)
    ).hexdigest()


def hang_or_crash(source: Path, config: ExtractConfig) -> Extracted:
    """Stands for a decoder with a bug that some file triggers."""
    if source.name == "2.mp4" and source.parent.name == "a":
        time.sleep(600)
    if source.name == "3.mp4" and source.parent.name == "b":
        os.kill(os.getpid(), signal.SIGSEGV)
    return extract_one(source, config)
