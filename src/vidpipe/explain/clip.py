"""Everything that is shown of one clip: maps over its frames, and what the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.explain.attention import AttentionMaps, attention_maps
from vidpipe.explain.grad_cam import grad_cam as compute_grad_cam
from vidpipe.trained.card import TrainedModel

Kind = Literal["spatial", "temporal", "clip", "grad_cam"]


@dataclass(frozen=True)
class View:
    """A map for each of T frames, and the frames that the maps lie on."""

    kind: Kind
    title: str
    maps: Tensor
    """(T, gh, gw)"""
    frames: tuple[int, ...]
    """Column t shows `maps[t]` over frame `frames[t]`."""


@dataclass(frozen=True)
class Explanation:
    frames: Tensor
    """(T, 3, h, w) uint8, as the model sees them but for normalisation."""
    views: list[View]
    class_token_over_time: Tensor | None
    """(T, T), query frame x key frame, where the class token attends over time (AIM)."""
    probabilities: Tensor
    """(C,)"""

    def view(self, kind: Kind) -> View | None:
        """The view of a kind, each map on its own frame; views at several offsets become their mean.

        A frame that no other one looks at has zeros.
        """
        found = [view for view in self.views if view.kind == kind]
        if not found:
            return None
        own = tuple(range(len(self.frames)))
        if len(found) == 1 and found[0].frames == own:
            return found[0]
        title = found[0].title.splitlines()[0]
        total, count = torch.zeros_like(found[0].maps), torch.zeros(len(own))
        for view in found:
            for t, frame in enumerate(view.frames):
                # Beyond the clip's ends, a temporal head sees its own frame.
                if t != frame or view.frames == own:
                    total[frame] += view.maps[t]
                    count[frame] += 1
        return View(kind, title, total / count.clamp(min=1)[:, None, None], own)


def explain_clip(
    trained: TrainedModel,
    frames: Tensor,
    block: int = -1,
    grad_cam: bool = False,
    target: int | None = None,
) -> Explanation:
    """Explain one clip: frames (T, 3, h, w) uint8, as many and of the size that the model is for.

    `block`: whose attention, and whose input for Grad-CAM. `target`: Grad-CAM's class; None: the
    predicted one. Raises VidpipeError for a Swin, a block that is not there, and other frames.
    """
    height, width = trained.form.sides
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, height, width):
        raise VidpipeError(
            f"explain: expected uint8 frames (T, 3, {height}, {width}), got {frames.dtype} "
            f"{tuple(frames.shape)}"
        )
    model = trained.model
    device = next(model.parameters()).device
    clip = to_input(frames.to(device), trained.backbone.mean, trained.backbone.std)[None]
    maps = attention_maps(model, clip, block)
    views = attention_views(maps)
    probabilities = maps.logits.softmax(-1)
    if grad_cam:
        target = int(probabilities.argmax()) if target is None else target
        cam = compute_grad_cam(model, clip, target, block)
        title = f"Grad-CAM of\n{trained.classes[target]}"
        views.append(View("grad_cam", title, cam, tuple(range(len(frames)))))
    return Explanation(frames.cpu(), views, maps.class_token_over_time(), probabilities)


def attention_views(maps: AttentionMaps) -> list[View]:
    """Spatial heads, temporal heads by offset, attention over time, and a clip's one query."""
    own = tuple(range(maps.num_frames))
    views = []

    def add(kind: Kind, title: str, values: Tensor, frames: Sequence[int] = own) -> None:
        views.append(View(kind, title, values, tuple(frames)))

    def heads(dt: int | None) -> str:
        return f"{maps.offsets.count(dt)} of {len(maps.offsets)} heads"

    if 0 in maps.offsets:
        add("spatial", f"spatial heads\n{heads(0)}", maps.mean(0))
    if None in maps.offsets:  # neither spatial nor temporal: every head is a bit of both
        add("spatial", f"heads that mix frames\n{heads(None)}", maps.mean(None))
    for dt in sorted({dt for dt in maps.offsets if dt}):
        keys = [maps.key_frame(t, dt) for t in own]
        sign = "+" if dt > 0 else "\N{MINUS SIGN}"
        title = f"temporal heads\nkeys of frame t {sign} {abs(dt)}\n{heads(dt)}"
        add("temporal", title, maps.mean(dt), keys)
    received = maps.from_other_frames()
    if received is not None:
        add("temporal", "attention over time\nfrom other frames", received)
    if maps.clip_query is not None:
        add("clip", "query of the clip\nover all frames", maps.clip_query.mean(0))
    return views
