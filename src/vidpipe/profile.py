"""What a model costs: parameters and multiply-accumulates, counted as the three papers count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidpipe.methods.base import VideoModel


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


def cost(model: VideoModel, img_size: int) -> Cost:
    """Cost of `model` for one view of `model.num_frames` frames of `img_size` pixels.

    GMACs are of the inference model (merged where it can be): matrix products, convolutions and
    attention by torch's counter, plus 5 a LayerNorm element (fvcore's rule, which the papers used).
    """
    head = parameters(model.head)
    tunable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    inference = model.merge() if model.not_mergeable is None else model
    backbone = parameters(model.vit)
    return Cost(
        total=parameters(model),
        tunable=tunable,
        tunable_without_head=tunable - head,
        new_at_inference=parameters(inference) - backbone - head,
        gmacs=gmacs(inference, img_size),
    )


@torch.no_grad()
def gmacs(model: VideoModel, img_size: int) -> float:
    norm_elements = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal norm_elements
        norm_elements += output.numel()

    handles = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.LayerNorm)
    ]
    parameter = next(model.parameters())
    clip = torch.zeros(
        1, 3, model.num_frames, img_size, img_size, device=parameter.device, dtype=parameter.dtype
    )
    training = model.training
    try:
        # The math backend shows attention as the two matrix products it is.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(clip)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return (counter.get_total_flops() / 2 + 5 * norm_elements) / 1e9
