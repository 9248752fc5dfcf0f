"""Explanations as pictures: maps over frames, as a strip a clip and as an animated file.

`inferno` rises evenly in lightness, so it is safe for the colour-blind and in print. The frames
beneath are grey: no colour of theirs is taken for attention.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidpipe.explain.clip import Explanation, Kind, View, explain_clip
from vidpipe.files import atomic_file
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.viz.plots import save

SIDE = 224
"""Pixels that a frame of an animated file has at least."""
COLUMNS = 16
"""More frames than this are thinned out in a strip, and all in the animated file."""
SECONDS_PER_FRAME = 0.25
_LUMA = (0.299, 0.587, 0.114)


def limits(maps: Tensor) -> tuple[float, float]:
    """What the darkest and the brightest colour stand for, over all frames of a clip. Single patches
    far above all others, which large ViTs have, do not set the scale."""
    return float(maps.min()), float(maps.quantile(0.995))


def blend(frames: Tensor, maps: Tensor) -> Tensor:
    """(T, 3, h, w) uint8 and (T, gh, gw) -> (T, 3, h, w) uint8, the frames in grey beneath."""
    low, high = limits(maps)
    scaled = ((maps - low) / max(high - low, 1e-12)).clamp(0, 1)
    size = frames.shape[-2:]
    m = F.interpolate(scaled[:, None], size=size, mode="bilinear").clamp(0, 1)
    grey = (frames.float() / 255 * torch.tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    colours = matplotlib.colormaps["inferno"](m[:, 0].numpy())[..., :3]
    heat = torch.from_numpy(np.ascontiguousarray(colours)).float().permute(0, 3, 1, 2)
    # Where there is little, the frame shines through: a map of one colour would hide it.
    alpha = 0.25 + 0.5 * m
    mixed = (1 - alpha) * grey + alpha * heat
    return (mixed * 255).round().clamp(0, 255).to(torch.uint8)


def enlarged(frames: Tensor) -> Tensor:
    """By a whole factor to at least `SIDE`, pixels kept as squares: they are the model's."""
    factor = math.ceil(SIDE / min(frames.shape[-2:]))
    return frames.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def caption(view: View) -> str:
    """In one line, without how many heads there are."""
    return " ".join(re.sub(r"\n\d+ of \d+ heads$", "", view.title).split())


def plot_strip(explanation: Explanation, title: str, path: Path) -> None:
    """A PNG: columns are frames; rows the input, the views, and the class token over time."""
    frames, views = enlarged(explanation.frames), explanation.views
    count = len(frames)
    shown = np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)).tolist()
    rows = [("input", frames, list(range(count)))]
    for view in views:
        low, high = limits(view.maps)
        # Two digits of the larger one: beside it, 1e-14 is zero.
        ends = [float(f"{100 * x:.2g}") if x > high / 100 else 0 for x in (low, high)]
        unit = f"\n{ends[0]:g} to {ends[1]:g} %"
        beneath = frames[list(view.frames)]
        if view.kind == "grad_cam":  # of gradients: no unit, but zero is zero
            unit = "" if view.maps.any() else "\nnone anywhere"
        text = view.title + unit
        rows.append((text, blend(beneath, view.maps), list(view.frames)))
    matrix = explanation.class_token_over_time
    cell, margin, gap, head = 1.25, 2.0, 0.06, 0.65  # inches
    tall = 0 if matrix is None else 2 * cell
    width = margin + len(shown) * (cell + gap)
    height = head + len(rows) * (cell + gap) + tall
    figure = Figure(figsize=(width, height))
    figure.text(0.01, 1 - 0.22 / height, title, va="center", fontsize=12)

    def label(text: str, middle: float, right: float = margin - 0.12) -> None:
        place = (right / width, middle / height)
        figure.text(*place, text, ha="right", va="center", fontsize=9)

    y = height - head
    for text, pictures, sources in rows:
        y -= cell
        label(text, y + cell / 2)
        for column, t in enumerate(shown):
            x = margin + column * (cell + gap)
            axes = figure.add_axes((x / width, y / height, cell / width, cell / height))
            axes.imshow(pictures[t].permute(1, 2, 0).numpy(), interpolation="antialiased")
            axes.axis("off")
            if text == "input":
                axes.set_title(f"t = {t + 1}", fontsize=9, pad=3)
            elif sources != list(range(count)):
                box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "edgecolor": "none"}
                axes.text(
                    *(0.04, 0.94, f"frame {sources[t] + 1}"),
                    transform=axes.transAxes,
                    va="top",
                    color="white",
                    fontsize=8,
                    bbox=box,
                )
        y -= gap
    if matrix is not None:
        wide, tall = len(shown) * (cell + gap) - gap, tall - 0.45
        y -= tall + 0.1
        axes = figure.add_axes((margin / width, y / height, wide / width, tall / height))
        image = axes.imshow(matrix[shown].T.numpy(), cmap="inferno", aspect="auto", vmin=0)
        axes.set_xticks(range(len(shown)), [str(t + 1) for t in shown])
        ticks = range(0, count, max(1, count // 8))
        axes.set_yticks(ticks, [str(t + 1) for t in ticks])
        axes.tick_params(labelsize=8, length=2)
        bar = ((margin + wide + 0.08) / width, y / height, 0.12 / width, tall / height)
        figure.colorbar(image, cax=figure.add_axes(bar)).ax.tick_params(labelsize=8)
        label(
            "class token over time\ncolumn: frame t\nrow: attends to", y + tall / 2, margin - 0.35
        )
    save(figure, path)


def write_animation(explanation: Explanation, title: str, path: Path) -> None:
    """A GIF, `SECONDS_PER_FRAME` a frame: the input and one panel a kind of view, side by side.

    `title` may have several lines; what is too long for its place is cut.
    """
    kinds: tuple[Kind, ...] = get_args(Kind)
    views = [view for kind in kinds if (view := explanation.view(kind)) is not None]
    frames = enlarged(explanation.frames)
    panels = [frames, *(blend(frames, view.maps) for view in views)]
    (tall, side), count, gap, line = frames.shape[-2:], len(frames), 6, 18
    titles = title.splitlines()
    head = line * (len(titles) + 1) + 8
    font = ImageFont.load_default(size=13)
    pictures = []
    for t in range(count):
        width = len(panels) * (side + gap) - gap
        picture = Image.new("RGB", (width, head + tall), "white")
        draw = ImageDraw.Draw(picture)

        def write(text: str, x: int, row: int, space: int, draw: Any = draw) -> None:
            while draw.textlength(text, font) > space:
                text = text.removesuffix("…")[:-1] + "…"
            draw.text((x + 4, 4 + line * row), text, fill="black", font=font)

        for row, text in enumerate(titles):
            write(text, 0, row, width - 8)
        captions = [f"frame {t + 1} of {count}", *map(caption, views)]
        for i, (panel, text) in enumerate(zip(panels, captions, strict=True)):
            x = i * (side + gap)
            write(text, x, len(titles), side - 4)
            picture.paste(Image.fromarray(panel[t].permute(1, 2, 0).numpy()), (x, head))
        pictures.append(picture)
    with atomic_file(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=round(1000 * SECONDS_PER_FRAME),
            loop=0,
        )


def overlay(trained: TrainedModel, frames: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Frames (T, 3, h, w) uint8 at the model's own size, with attention laid over: (T, 3, h, w) uint8
    for spatial heads, the same for what looks at other frames, and the caption of each of the two.

    Second come temporal heads or attention over time, else the query that reads all frames, else
    the first once more. A map lies on the frame whose patches are looked at. Raises VidpipeError as
    `explain_clip` does.
    """
    explanation = explain_clip(trained, frames)
    found = [explanation.view(kind) for kind in ("spatial", "temporal", "clip")]
    views = [view for view in found if view is not None]
    first, second = views[0], views[min(1, len(views) - 1)]
    pictures = [blend(explanation.frames, view.maps) for view in (first, second)]
    return pictures[0], pictures[1], [caption(first), caption(second)]
