"""Everything that is shown of one clip: maps over its frames, and what the model answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.explain.attention import Answer, AttentionMaps, attention_maps, of_the_clip
from vidpipe.explain.grad_cam import grad_cam as compute_grad_cam
from vidpipe.methods.base import VideoModel
from vidpipe.trained.trained_model import TrainedModel

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
    box: Tensor | None = None,
) -> Explanation:
    """Explain one clip: frames (T, 3, h, w) uint8, as many and of the size that the model is for.

    `block`: whose attention, and whose input for Grad-CAM. `target`: Grad-CAM's class; None: the
    predicted one. `box` (4,), of task detection: x1, y1, x2, y2 as fractions of the frame; its answer is
    explained, by the attention of the patches in it, and it is drawn on the frames.

    Raises VidpipeError for a Swin, a block that is not there, other frames, and a box that is missing.
    """
    height, width = trained.form.sides
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != (3, height, width):
        raise VidpipeError(
            f"explain: expected uint8 frames (T, 3, {height}, {width}), got {frames.dtype} "
            f"{tuple(frames.shape)}"
        )
    model, answer = trained.model, cast(Answer, of_the_clip)
    patches: Tensor | None = None
    if "boxes" in trained.task.inputs:
        if box is None:
            raise VidpipeError("explain: a model of task detection answers of a box; give one")
        answer, patches = _of_box(trained, box), patches_in(box, model)
    device = next(model.parameters()).device
    clip = to_input(frames.to(device), trained.backbone.mean, trained.backbone.std)[None]
    maps = attention_maps(model, clip, block, answer, patches)
    views = attention_views(maps)
    probabilities = trained.task.probabilities(maps.logits)
    if grad_cam:
        target = int(probabilities.argmax()) if target is None else target
        cam = compute_grad_cam(model, clip, target, block, answer)
        title = f"Grad-CAM of\n{trained.classes[target]}"
        views.append(View("grad_cam", title, cam, tuple(range(len(frames)))))
    shown = frames.cpu() if box is None else _drawn(frames.cpu(), box)
    return Explanation(shown, views, maps.class_token_over_time(), probabilities)


def _of_box(trained: TrainedModel, box: Tensor) -> Answer:
    def answer(model: VideoModel, video: Tensor) -> Tensor:
        boxes = box.to(video.device).expand(len(video), 1, 4)
        return cast(Tensor, trained.task.network(model)(video, boxes))[:, 0]

    return answer


def patches_in(box: Tensor, model: VideoModel) -> Tensor:
    """Numbers of the patches that a box (4,), as fractions of the frame, touches; at least one."""
    rows, columns = model.view.grid
    x1, y1, x2, y2 = box.double().clamp(0, 1).tolist()
    first = min(int(y1 * rows), rows - 1), min(int(x1 * columns), columns - 1)
    end = max(math.ceil(y2 * rows), first[0] + 1), max(math.ceil(x2 * columns), first[1] + 1)
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[first[0] : end[0], first[1] : end[1]] = True
    return inside.flatten().nonzero()[:, 0]


def _drawn(frames: Tensor, box: Tensor) -> Tensor:
    from torchvision.utils import draw_bounding_boxes

    height, width = frames.shape[-2:]
    pixels = box.cpu()[None] * torch.tensor([width, height, width, height])
    return torch.stack([draw_bounding_boxes(own, pixels, colors="white") for own in frames])


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
