"""Why a video is not used. The reasons are part of the manifest's schema: programs count them."""

from __future__ import annotations

from typing import Any, Literal, get_args

Reason = Literal[
    "missing_file",
    "no_video_stream",
    "truncated",
    "corrupt_frames",
    "undecodable",
    "too_short",
    "too_large",
    "outside_file",
    "duplicate",
    "timeout",
    "crashed",
]
REASONS: tuple[str, ...] = get_args(Reason)


class QuarantineError(Exception):
    """This video cannot be trusted. `reason` is machine-readable, `detail` is for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return QuarantineError, (self.reason, self.detail)  # survives the trip between processes
