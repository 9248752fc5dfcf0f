"""One video file -> one canonical clip, or a reason why not. Runs inside a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vidpipe.files import sha256
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import decode
from vidpipe.video.encode import encode_clip
from vidpipe.video.probe import check_size
from vidpipe.video.quarantine import QuarantineError, Reason

BAD: dict[str, Any] = {"frames": 0, "fps": 0.0, "width": 0, "height": 0}


class Extracted(NamedTuple):
    row: dict[str, Any]
    """The manifest's measured columns."""
    data: bytes
    """The clip as it will lie in a shard; empty for a quarantined video."""


def extract_one(source: Path, config: ExtractConfig) -> Extracted:
    """Decode, check and encode `source`. Never raises for a bad file: the row then says why."""
    digest, size = "", 0
    try:
        if not source.is_file():
            raise QuarantineError("missing_file", "listed in the annotations but not on disk")
        size = check_size(source, config)
        digest = sha256(source)
        fps, frames = decode(source, config)
        clip = encode_clip(frames, config)
        if clip.frames < config.min_frames:
            detail = f"{clip.frames} frames, fewer than {config.min_frames}"
            raise QuarantineError("too_short", detail)
    except QuarantineError as error:
        return quarantined(error.reason, error.detail, digest, size)
    except MemoryError:
        return quarantined("crashed", "the decoder ran out of memory", digest, size)
    except Exception as error:
        # Whatever else a hostile file provokes is still this file's problem, not the run's.
        return quarantined("undecodable", f"{type(error).__name__}: {error}", digest, size)
    row = {
        **{"status": "ok", "reason": "", "detail": "", "frames": clip.frames, "fps": float(fps)},
        **{"width": clip.width, "height": clip.height, "sha256": digest, "source_bytes": size},
    }
    return Extracted(row, clip.data)


def quarantined(reason: Reason, detail: str, digest: str = "", size: int = 0) -> Extracted:
    detail = " ".join(detail.split())[:500]
    row = {"status": "quarantined", "reason": reason, "detail": detail, "sha256": digest}
    return Extracted({**BAD, **row, "source_bytes": size}, b"")
