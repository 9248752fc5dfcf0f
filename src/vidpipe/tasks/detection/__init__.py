"""Which person does what: boxes of a key frame, several actions a box (AVA).

Formats: https://research.google.com/ava/download.html.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidpipe.tasks.detection.ava_metric import frame_map as frame_map

__all__ = ["frame_map"]


def __getattr__(name: str) -> Any:
    """`frame_map` when it is used: it needs pandas, which a package opens without."""
    if name != "frame_map":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vidpipe.tasks.detection.ava_metric import frame_map

    return frame_map
