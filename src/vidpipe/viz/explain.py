"""Explanations as pictures: maps over frames, as a strip a clip and as an animated file.

`inferno` rises evenly in lightness, so it is safe for the colour-blind and in print. The frames
beneath are grey: no colour of theirs is taken for attention.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidpipe.explain.clip import Explanation, View
from vidpipe.files import atomic_file
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
    """(T, 3, S, S) uint8 and (T, gh, gw) -> (T, 3, S, S) uint8, the frames in grey beneath."""
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
    factor = math.ceil(SIDE / frames.shape[-1])
    return frames.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def caption(view: View) -> str:
    """In one line, without how many heads there are."""
    return " ".join(
        line for line in view.title.splitlines() if " of " not in line or "of frame" in line
    )


def plot_strip(explanation: Explanation, title: str, path: Path) -> None:
    """Columns are frames; rows the input, each view, and the class token's attention over time."""
    frames, views = enlarged(explanation.frames), explanation.views
    count = len(frames)
    shown = np.unique(np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int)).tolist()
    rows = [("input", frames, list(range(count)))]
    for view in views:
        low, high = limits(view.maps)
        unit = f"\n{round(100 * low, 1):g} to {round(100 * high, 1):g} %"
        beneath = frames[list(view.frames)]
        text = view.title if view.kind == "grad_cam" else view.title + unit
        rows.append((text, blend(beneath, view.maps), list(view.frames)))
    matrix = explanation.class_token_over_time
    cell, margin, gap, head = 1.25, 2.0, 0.06, 0.65  # inches
    tall = 0 if matrix is None else 2 * cell
    width = margin + len(shown) * (cell + gap)
    height = head + len(rows) * (cell + gap) + tall
    figure = Figure(figsize=(width, height))
    figure.text(0.01, 1 - 0.22 / height, title, va="center", fontsize=12, parse_math=False)

    def label(text: str, middle: float) -> None:
        place = ((margin - 0.12) / width, middle / height)
        figure.text(*place, text, ha="right", va="center", fontsize=9, parse_math=False)

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
        label("class token over time:\nframe t (column) to\neach frame (row)    ", y + tall / 2)
    save(figure, path)


def write_animation(explanation: Explanation, title: str, path: Path) -> None:
    """A GIF, `SECONDS_PER_FRAME` a frame: the input and one panel a kind of view, side by side."""
    kinds = ("spatial", "temporal", "clip", "grad_cam")
    views = [view for kind in kinds if (view := explanation.view(kind)) is not None]
    frames = enlarged(explanation.frames)
    panels = [frames, *(blend(frames, view.maps) for view in views)]
    captions = ["", *(caption(view) for view in views)]
    side, gap, head = frames.shape[-1], 6, 44
    count = len(frames)
    font = ImageFont.load_default(size=13)
    pictures = []
    for t in range(count):
        size = (len(panels) * (side + gap) - gap, head + side)
        picture = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(picture)
        draw.text((4, 4), title, fill="black", font=font)
        for i, (panel, text) in enumerate(zip(panels, captions, strict=True)):
            x = i * (side + gap)
            draw.text((x + 4, 24), text or f"frame {t + 1} of {count}", fill="black", font=font)
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
