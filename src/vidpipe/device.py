"""The device that computes. Whether that is a GPU is decided here, for every command."""

from __future__ import annotations

from typing import Literal

import torch

from vidpipe.errors import VidpipeError

UseGpu = Literal["auto", "yes", "no"]


def choose_device(use_gpu: UseGpu, cluster_gpus: float | None = None) -> torch.device:
    """The device that `train.use_gpu` asks for; auto is a GPU where there is one.

    `cluster_gpus`: how many GPUs the cluster has on which workers will compute. They decide, and not
    this process, which may run on a head node without any. None: this process computes.
    Raises VidpipeError for `yes` where there is no GPU.
    """
    there = torch.cuda.is_available() if cluster_gpus is None else cluster_gpus >= 1
    if use_gpu == "yes" and not there:
        where = "torch sees no usable GPU on this machine"
        if cluster_gpus is not None:
            where = "the Ray cluster has no GPU"
        raise VidpipeError(f"train.use_gpu: yes, but {where}; set it to auto or no to use the CPU")
    return torch.device("cuda" if there and use_gpu != "no" else "cpu")
