"""How much longer a model takes than another, measured so that a drifting machine cancels out."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from vidpipe.methods.base import VideoModel


@torch.inference_mode()
def latency_ratio(
    model: VideoModel, reference: VideoModel, clip: Tensor, rounds: int = 20
) -> float:
    """Median over `rounds` of (time of `model` / time of `reference`) on `clip`.

    The two run in turn, and each goes first every other time.
    """

    def seconds(module: VideoModel) -> float:
        started = time.perf_counter()
        module(clip)
        if clip.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for module in (model, reference):
        seconds(module)  # warm-up
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            b, a = seconds(reference), seconds(model)
        else:
            a, b = seconds(model), seconds(reference)
        ratios.append(a / b)
    return statistics.median(ratios)
