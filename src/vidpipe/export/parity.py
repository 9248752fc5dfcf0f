"""The proof: an exported model against the trained one on the same clips, and where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.tasks.base import Task
from vidpipe.tasks.registry import SINGLE_LABEL

# What has the same output in a merged model as in the trained one: in a block, what is added to the
# residual stream (LayerScale, or the Identity in its place) and what reads it; around the blocks, norms
# and head.
IN_BLOCK = {
    "norm1": "what its attention reads",
    "ls1": "its attention",
    "norm2": "what its MLP reads",
    "ls2": "its MLP",
}
SHARED = {*IN_BLOCK, "norm_pre", "norm", "head"}
PARTED = 1e-4
"""Relative difference that rounding alone does not make."""


@dataclass(frozen=True)
class Parity:
    """One exported file against the trained model, which is fp32, on the same clips."""

    clips: int
    max_abs_difference: float
    """Of logits."""
    top1_agreement: float
    tolerance: float | None
    """None in lower precisions, which are judged by the accuracy they lose."""
    format: str = "safetensors"
    dtype: str = "fp32"
    file: str = "model.safetensors"
    top1: float | None = None
    """On the validation clips, one centre view each; None where it was not measured."""
    top1_fp32: float | None = None
    """Of the trained model on the same views."""
    accuracy_clips: int | None = None


@torch.no_grad()
def prove_parity(
    trained: VideoModel,
    exported: VideoModel,
    clips: Sequence[Tensor],
    tolerance: float,
    boxes: Sequence[Tensor] = (),
    task: Task = SINGLE_LABEL,
) -> Parity:
    """Compare logits on `clips` (each (1, 3, T, H, W), normalised) and, where the task has them, `boxes`
    (each (1, M, 4)).

    Raises VidpipeError beyond `tolerance`, naming the first layer that differs: a merge with a wrong
    scale costs accuracy silently.
    """
    inputs = list(zip(clips, boxes)) if boxes else [(clip,) for clip in clips]
    networks = (task.network(model).eval() for model in (trained, exported))
    a, b = (torch.cat([network(*own) for own in inputs]) for network in networks)
    parity = Parity(len(clips), *_compare(a, b), tolerance)
    if not agrees(parity):
        worst = int((a - b).abs().flatten(1).amax(1).nan_to_num(torch.inf).argmax())
        where = first_difference(trained, exported, clips[worst])
        refuse(f"the exported {trained.name} model", parity, f"first at {where}")
    return parity


@torch.no_grad()
def prove_program(
    expected: Tensor,
    program: Callable[..., Tensor],
    clips: Tensor,
    tolerance: float | None,
    *,
    boxes: Tensor | None = None,
    form: str = "torch_export",
    dtype: str = "fp32",
    file: str = "model.pt2",
) -> Parity:
    """Compare a program's logits with `expected` (N, C) on uint8 `clips` (N, T, 3, H, W); or (N, M, C),
    on `boxes` (N, M, 4), too.

    It runs on batches of 1, 3, 1, 3, ...: its batch must be free. Raises VidpipeError beyond
    `tolerance`; with None, only where logits are not finite.
    """
    sizes: list[int] = []
    while sum(sizes) < len(clips):
        sizes.append(min(1 if len(sizes) % 2 == 0 else 3, len(clips) - sum(sizes)))
    inputs = [tensor.split(sizes) for tensor in (clips, boxes) if tensor is not None]
    logits = torch.cat([program(*batch) for batch in zip(*inputs, strict=True)])
    parity = Parity(len(clips), *_compare(expected, logits), tolerance, form, dtype, file)
    what = f"{parity.file} ({parity.format}, {parity.dtype})"
    if tolerance is None:
        if not logits.isfinite().all():
            raise VidpipeError(
                f"export: {what} gives logits that are not finite; leave {parity.dtype} out of "
                "export.precisions"
            )
    elif not agrees(parity):
        refuse(what, parity, "the safetensors of the same weights agree, so the conversion differs")
    return parity


def agrees(parity: Parity) -> bool:
    # A comparison that is false for NaN, too.
    within = parity.tolerance is not None and parity.max_abs_difference <= parity.tolerance
    return within and parity.top1_agreement == 1


def refuse(what: str, parity: Parity, where: str) -> None:
    raise VidpipeError(
        f"export: {what} differs from the trained one by {parity.max_abs_difference:.3g} in its "
        f"logits (export.tolerance {parity.tolerance:g}), top-1 agrees on "
        f"{round(parity.top1_agreement * parity.clips)} of {parity.clips} clips; {where}; nothing "
        "was exported"
    )


def _compare(a: Tensor, b: Tensor) -> tuple[float, float]:
    agreement = (a.argmax(-1) == b.argmax(-1)).float().mean()
    return float((a - b).abs().max()), float(agreement)


@torch.no_grad()
def first_difference(trained: VideoModel, exported: VideoModel, clip: Tensor) -> str:
    """The first layer whose output on `clip` (1, 3, T, H, W) differs, in the order of the forward pass.

    Where both have the same modules that is any of them; in a merged model, whose layers also do what
    adapters did, one of SHARED.
    """
    names = [name for name, _ in trained.named_modules()]
    if names == [name for name, _ in exported.named_modules()]:
        tapped = [name for name, module in trained.named_modules() if not list(module.children())]
    else:
        common = {name for name, _ in exported.named_modules()}
        tapped = [n for n in names if n in common and n.rpartition(".")[2] in SHARED]
    found = ("no layer beyond rounding", 0.0)
    pairs = zip(_outputs(trained, tapped, clip), _outputs(exported, tapped, clip), strict=False)
    for (name, a), (other, b) in pairs:
        if name != other or a.shape != b.shape:
            return f"{name}, which the other model does not run there"
        difference = float((a - b).abs().max())
        if not difference <= PARTED * float(a.abs().max()):
            found = (_where(trained, name), difference)
            break
    return f"{found[0]}, by {found[1]:.3g}"


def _where(model: VideoModel, name: str) -> str:
    index = model.block_of(f"{name}.")
    if index is None or index < 0:
        return name
    part = IN_BLOCK.get(name.rpartition(".")[2])
    return f"{name} (block {index}: {part})" if part else f"{name} (block {index})"


def _outputs(model: VideoModel, names: Sequence[str], clip: Tensor) -> list[tuple[str, Tensor]]:
    """Outputs of the named modules in the order of their calls."""
    seen: list[tuple[str, Tensor]] = []

    def tap(name: str) -> Callable[[object, object, object], None]:
        def hook(module: object, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                seen.append((name, output))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(tap(name)) for name in names]
    try:
        model(clip)
    finally:
        for handle in handles:
            handle.remove()
    return seen
