"""Why a model says what it says: attention by spatial and temporal heads, and Grad-CAM."""

from __future__ import annotations

from torch import Tensor

from vidpipe.explain.attention import AttentionMaps, attention_maps
from vidpipe.explain.clip import Explanation, View, explain_clip
from vidpipe.explain.grad_cam import grad_cam
from vidpipe.training.checkpoint import TrainedModel

__all__ = [
    "AttentionMaps",
    "Explanation",
    "View",
    "attention_maps",
    "explain_clip",
    "grad_cam",
    "overlay",
]


def overlay(trained: TrainedModel, frames: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Frames (T, 3, S, S) uint8 at the model's own size, with attention laid over: (T, 3, S, S) uint8
    for spatial heads, the same for what looks at other frames, and the caption of each of the two.

    Second come temporal heads or attention over time, else the query that reads all frames, else
    the first once more. A map lies on the frame whose patches are looked at. Raises VidpipeError as
    `explain_clip` does.
    """
    from vidpipe.viz.explain import blend, caption

    explanation = explain_clip(trained, frames)
    found = [explanation.view(kind) for kind in ("spatial", "temporal", "clip")]
    views = [view for view in found if view is not None]
    first, second = views[0], views[min(1, len(views) - 1)]
    pictures = [blend(explanation.frames, view.maps) for view in (first, second)]
    return pictures[0], pictures[1], [caption(first), caption(second)]
