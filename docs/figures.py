"""One transformer block under each method: what is frozen, what is trained, what is merged away."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FROZEN, TRAINED, MERGED, FREE = "frozen", "trained", "trained, merged away", "no parameters"
COLOURS = {FROZEN: "#dfe6ee", TRAINED: "#f6b26b", MERGED: "#9fd5a6", FREE: "#ffffff"}
STEP, WIDE, HIGH = 1.75, 1.5, 0.68


@dataclass
class Branch:
    """A residual branch: boxes in a row, and perhaps another row beside them, added at its end."""

    boxes: list[tuple[str, str]]
    beside: list[tuple[str, str]] = field(default_factory=list)
    start: int = 1
    """The box of `boxes` before which `beside` branches off."""


LN, MSA, MLP = ("norm", FROZEN), ("attention\nover space", FROZEN), ("MLP", FROZEN)
OVER_TIME = ("same attention\nover time", FROZEN)
SHIFT = ("K, V heads\nshifted in time", FREE)
BLOCKS = {
    "linear_probe": [Branch([LN, MSA]), Branch([LN, MLP])],
    "aim": [
        Branch([LN, OVER_TIME, ("adapter", TRAINED)]),
        Branch([LN, MSA, ("adapter", TRAINED)]),
        Branch([LN, MLP], beside=[("adapter", TRAINED)]),
    ],
    "st_adapter": [
        Branch([("down", TRAINED), ("3x1x1 conv\nover time", TRAINED), ("up", TRAINED)]),
        Branch([LN, MSA]),
        Branch([LN, MLP]),
    ],
    "zeroi2v": [
        Branch([LN, ("adapter", MERGED), SHIFT, MSA, ("adapter", MERGED)]),
        Branch([LN, ("adapter", MERGED), MLP, ("adapter", MERGED)]),
    ],
    "lora": [
        Branch([LN, ("low-rank\nq, k, v", MERGED), SHIFT, MSA]),
        Branch([LN, MLP]),
    ],
    "evl": [Branch([LN, MSA]), Branch([LN, MLP])],
}
AFTER = {
    "evl": [("decoder layer:\nconv, time, q.k", TRAINED)],
}
"""What reads the block's output without changing it."""


def draw_methods(folder: Path) -> None:
    """NAME.svg of each method of `BLOCKS`, and legend.svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "vidpipe"  # the same bytes each time
    from matplotlib import pyplot as plt

    folder.mkdir(exist_ok=True)
    for name, branches in BLOCKS.items():
        figure, axes = plt.subplots(figsize=(10.5, 2.4))
        end = 0.0
        for branch in branches:
            end = draw_branch(axes, branch, end)
        for label, kind in AFTER.get(name, []):
            box(axes, end - 0.2, -1.15, label, kind)
            arrow(axes, (end + 0.4, 0), (end + 0.4, -0.8))
            axes.plot([end, end + 0.4], [0, 0], color="#333", lw=1.1)
        axes.annotate(
            "", (end + 0.55, 0), (end, 0), arrowprops={"arrowstyle": "-|>", "color": "#333"}
        )
        below = name in AFTER or any(branch.beside for branch in branches)
        finish(axes, end + (1.6 if name in AFTER else 0.8), -1.55 if below else -0.45)
        figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
    figure, axes = plt.subplots(figsize=(9.5, 0.5))
    for i, kind in enumerate(COLOURS):
        box(axes, (0, 2.2, 4.4, 8.0)[i], 0, "", kind, wide=0.5, high=0.4)
        axes.text((0, 2.2, 4.4, 8.0)[i] + 0.65, 0, kind, va="center", fontsize=9)
    axes.set_xlim(-0.1, 11.5)
    axes.set_ylim(-0.4, 0.4)
    axes.axis("off")
    figure.savefig(folder / "legend.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_branch(axes: Any, branch: Branch, at: float) -> float:
    """The branch from `at` rightwards; returns where it ends, behind its plus."""
    first = at + 0.45
    end = first + STEP * len(branch.boxes)
    axes.plot([at, end], [0, 0], color="#333", lw=1.1, zorder=0)
    for i, (label, kind) in enumerate(branch.boxes):
        box(axes, first + STEP * i, 0, label, kind)
    corner(axes, at + 0.2, end, 0.85)
    if branch.beside:
        begin = first + STEP * branch.start - (STEP - WIDE) / 2
        corner(axes, begin, end, -0.85)
        for i, (label, kind) in enumerate(branch.beside):
            box(axes, first + STEP * (branch.start + i), -0.85, label, kind)
    axes.text(end + 0.12, 0, "+", ha="center", va="center", fontsize=12, zorder=3,
              bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": "#333"})  # fmt: skip
    return end + 0.25


def box(
    axes: Any, x: float, y: float, label: str, kind: str, wide: float = WIDE, high: float = HIGH
) -> None:
    from matplotlib.patches import FancyBboxPatch

    patch = FancyBboxPatch((x, y - high / 2), wide, high, boxstyle="round,pad=0.02",
                           fc=COLOURS[kind], ec="#333", lw=1, zorder=2)  # fmt: skip
    axes.add_patch(patch)
    axes.text(x + wide / 2, y, label, ha="center", va="center", fontsize=7.5, zorder=3)


def corner(axes: Any, begin: float, end: float, high: float) -> None:
    axes.plot(
        [begin, begin, end + 0.12, end + 0.12], [0, high, high, 0], color="#333", lw=1.1, zorder=0
    )


def arrow(axes: Any, begin: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": "#333"})


def finish(axes: Any, right: float, bottom: float) -> None:
    axes.set_xlim(-0.1, right)
    axes.set_ylim(bottom, 1.0)
    axes.set_aspect("equal")
    axes.axis("off")
