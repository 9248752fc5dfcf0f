"""One video file -> one canonical clip, or a reason why not. Runs inside a worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidpipe.files import atomic_file, sha256
from vidpipe.video.config import ExtractConfig
from vidpipe.video.decode import QuarantineError, decode
from vidpipe.video.encode import encode_h264

BAD: dict[str, Any] = {
    "frames": 0,
    "fps": 0.0,
    "width": 0,
    "height": 0,
    "sha256": "",
    "source_bytes": 0,
}


def extract_one(source: Path, part: Path, config: ExtractConfig) -> dict[str, Any]:
    """Decode `source`, write its canonical MP4 to `part`; return the manifest's measured columns.

    Never raises for a bad file: the row then says `quarantined` and why.
    """
    digest = ""
    try:
        if not source.is_file():
            raise QuarantineError("missing_file", "listed in the annotations but not on disk")
        digest = sha256(source)
        info, frames = decode(source, config)
        data, count, (width, height) = encode_h264(frames, info.fps, config.crf, config.gop)
        if count < config.min_frames:
            raise QuarantineError("too_short", f"{count} frames, fewer than {config.min_frames}")
    except QuarantineError as error:
        return quarantined(error.reason, error.detail, digest)
    except Exception as error:
        # Whatever else a hostile file provokes is still this file's problem, not the run's.
        return quarantined("undecodable", f"{type(error).__name__}: {error}", digest)
    with atomic_file(part) as path:
        path.write_bytes(data)
    return {
        "status": "ok",
        "reason": "",
        "detail": "",
        "frames": count,
        "fps": float(info.fps),
        "width": width,
        "height": height,
        "sha256": digest,
        "source_bytes": source.stat().st_size,
    }


def quarantined(reason: str, detail: str, digest: str = "") -> dict[str, Any]:
    detail = " ".join(detail.split())[:500]
    return {**BAD, "status": "quarantined", "reason": reason, "detail": detail, "sha256": digest}
