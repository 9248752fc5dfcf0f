"""How much longer a model takes than another, measured so that a drifting machine cancels out."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from vidpipe.methods.base import VideoModel


@torch.inference_mode()
def latency_ratio(
    model: VideoModel, reference: VideoModel, clip: Tensor, rounds: int = 15
) -> float:
    """Median over `rounds` of (time of `model` / time of `reference`), run in turn on `clip`."""

    def seconds(module: VideoModel) -> float:
        started = time.perf_counter()
        module(clip)
        if clip.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for module in (model, reference):
        seconds(module)  # warm-up
    return statistics.median(seconds(model) / seconds(reference) for _ in range(rounds))
