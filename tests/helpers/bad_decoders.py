"""Stand for decoders with a bug that some file triggers. Decoding processes import nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from vidpipe.inference.segments import Request, Segment, segments
from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one
from vidpipe.video.quarantine import QuarantineError


def breaks_off(source: str, request: Request) -> Iterator[Segment]:
    found = segments(source, request)
    if "good0" in source:
        yield next(found)
        raise QuarantineError("corrupt_frames", "made up")
    yield from found


def hangs_or_dies(source: str, request: Request) -> Iterator[Segment]:
    if "good0" in source:
        time.sleep(600)
    if "good1" in source:
        yield next(segments(source, request))
        os.kill(os.getpid(), signal.SIGSEGV)
    if "text" in source:
        raise RuntimeError("a surprise")
    yield from segments(source, request)


def counted(log: Path, source: Path, config: ExtractConfig) -> Extracted:
    """A good one that writes down what it was asked for."""
    with log.open("a") as file:
        file.write(f"{source.name}\n")
    return extract_one(source, config)
