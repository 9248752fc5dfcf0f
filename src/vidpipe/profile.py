"""What a model costs: parameters, multiply-accumulates and memory, counted as the three papers count."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import RmsNorm, SimpleNorm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidpipe.image_size import Size, sides
from vidpipe.methods.base import VideoModel

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, SimpleNorm)


@dataclass(frozen=True)
class Cost:
    """Parameters in units, `gmacs` (the papers' "GFLOPs") in 1e9 multiply-accumulates of one view."""

    total: int
    tunable: int
    """Trained, with the head."""
    tunable_without_head: int
    new_at_inference: int
    """Parameters beyond backbone and head once adapters are merged, where they can be."""
    gmacs: float


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def trained(module: nn.Module) -> int:
    """Its parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def cost(model: VideoModel, img_size: Size) -> Cost:
    """Cost of `model` for one view of `model.num_frames` frames of `img_size` pixels.

    GMACs are of the inference model (merged where it can be): matrix products, convolutions and
    attention by torch's counter, plus 5 an element of a LayerNorm (fvcore's rule, which the papers used;
    it has none for RMS norms, which count alike here).
    Counted on the meta device, where no weight is allocated and nothing is computed.
    """
    with torch.device("meta"):
        meta = _on(model, "meta")
        inference = meta.merge() if model.not_mergeable is None else meta
        return cost_of(model, inference, gmacs(inference, img_size))


def cost_of(model: VideoModel, inference: VideoModel, gmacs: float) -> Cost:
    """Cost of `model`, whose inference model has been counted already."""
    return Cost(
        total=parameters(model),
        tunable=trained(model),
        tunable_without_head=trained(model) - trained(model.head),
        new_at_inference=parameters(inference) - parameters(model.vit) - parameters(model.head),
        gmacs=gmacs,
    )


def gmacs(model: nn.Module, img_size: Size, num_frames: int | None = None) -> float:
    """1e9 multiply-accumulates of one clip; `num_frames` None: `model.num_frames`."""
    products, norms = macs_by_kind(model, img_size, num_frames)
    return (products + norms) / 1e9


@torch.no_grad()
def macs_by_kind(
    model: nn.Module, img_size: Size, num_frames: int | None = None
) -> tuple[float, float]:
    """(products, convolutions and attention; LayerNorms and RMS norms at 5 an element), of one clip.

    `num_frames` 0 stands for an image model, which takes (1, 3, H, W). Every token passes every block,
    as in the papers' code; a run leaves out what nothing reads (`VideoModel.tokens_needed`).
    """
    norm_elements = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal norm_elements
        norm_elements += output.numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, NORMS)]
    training, own = model.training, getattr(model, "every_token", False)
    # The counter stumbles over a view of a trained parameter that has no graph (a pooling's query).
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        model.every_token = True  # type: ignore[assignment]
        # The math backend shows attention as the two matrix products it is.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(_clip(model, img_size, num_frames))
    finally:
        model.every_token = own  # type: ignore[assignment]
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() / 2, 5.0 * norm_elements


def training_gmacs(model: VideoModel, img_size: Size) -> float:
    """1e9 multiply-accumulates of one clip's training step: forward and backward, without optimizer.

    Products, convolutions and attention only. What is frozen costs no weight gradient, and what has
    nothing trained below it no gradient at all, so the factor over the forward pass is the method's.
    """
    if not model.trained_names:
        return 0.0
    meta = _on(model, "meta").train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        meta(_clip(meta, img_size, None)).sum().backward()
    return counter.get_total_flops() / 2e9


def _clip(model: nn.Module, img_size: Size, num_frames: int | None, batch: int = 1) -> Tensor:
    frames = cast(Any, model).num_frames if num_frames is None else num_frames
    size = sides(img_size)
    shape = (batch, 3, frames, *size) if frames else (batch, 3, *size)
    parameter = next(model.parameters())
    return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)


@dataclass(frozen=True)
class ModuleCost:
    """One row of `modules`."""

    name: str
    total: int
    tunable: int


def modules(model: VideoModel, depth: int = 2) -> list[ModuleCost]:
    """Parameters by module, to `depth` parts of the name; blocks of equal cost are still listed."""
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        row = rows[".".join(name.split(".")[:depth])]
        row[0] += parameter.numel()
        row[1] += parameter.numel() if parameter.requires_grad else 0
    return [ModuleCost(name, *counts) for name, counts in rows.items()]


@dataclass(frozen=True)
class Memory:
    """Estimates for one training step, in bytes, fp32."""

    weights: int
    optimizer: int
    """Gradients and AdamW's two moments of the trained parameters."""
    activations_per_clip: int
    """What autograd keeps for the backward pass, for each clip of the batch."""


def memory(model: VideoModel, img_size: Size) -> Memory:
    """Counted, not guessed: a forward pass on the meta device under autograd's saved-tensor hooks.

    Adapters without a trained part below them keep nothing, which is why the order of frozen and
    trained layers decides a method's memory (EVL against AIM). Kernels' workspaces are not counted.
    """
    saved = saved_by_block(model, img_size)
    tunable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(4 * parameters(model), 3 * 4 * tunable, saved.rest + sum(saved.blocks))


@dataclass(frozen=True)
class Saved:
    """What autograd keeps of one clip for the backward pass, in bytes, fp32."""

    blocks: list[int]
    """By each block; a tensor that two share counts for the first."""
    inputs: list[int]
    """The size of each block's input, all that a recomputed block keeps."""
    rest: int
    """By what comes before and after the blocks."""


def saved_by_block(model: VideoModel, img_size: Size, device: str = "meta") -> Saved:
    """Counted as `memory` says. On the meta device attention is two matrix products, which keep the
    (N, N) weights; the kernels of a real device do not, so that less is kept there."""
    meta = _on(model, device)
    depth = len(meta.blocks)
    kept, inputs = [0] * (depth + 1), [0] * depth
    within = depth  # the last place is the rest's
    alive: list[Tensor] = []  # identities must not be reused while counting
    known = {p.untyped_storage()._cdata for p in meta.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept[within] += storage.nbytes()
            alive.append(tensor)
        return tensor

    own = meta.block

    def block(index: int, block: Any, x: Tensor, num_frames: int) -> Tensor:
        nonlocal within
        # A side network's step has the frozen block's output in the place of the block.
        read = [t for t in (x, block) if isinstance(t, Tensor)]
        within, inputs[index] = index, sum(t.numel() * t.element_size() for t in read)
        y = own(index, block, x, num_frames)
        within = depth
        return y

    def checkpointed(function: Callable[..., Any], *inputs: Tensor) -> Any:
        for tensor in inputs:
            pack(tensor)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, unpack):
            return function(*inputs)

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    meta.recomputed = 0
    meta.checkpointed = checkpointed  # type: ignore[method-assign]
    meta.block = block  # type: ignore[method-assign]
    meta.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        meta(_clip(meta, img_size, None))
    return Saved(kept[:depth], inputs, kept[depth])


def _on(model: VideoModel, device: str) -> VideoModel:
    """A copy of `model` on `device`; on the meta device without copying its weights, which would
    be in the way just where memory is to be saved."""
    memo: dict[int, Any] = {}
    if device == "meta":
        for tensor in (*model.parameters(), *model.buffers()):
            empty = torch.empty_like(tensor, device="meta")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            memo[id(tensor)] = empty
        if (backbone := getattr(model, "backbone", None)) is not None:
            memo[id(backbone)] = (
                backbone  # what the model was made from: described, not computed with
            )
    return copy.deepcopy(model, memo).to(device)
