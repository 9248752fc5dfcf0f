"""The device that computes: which it is, for every command, in what precision, and how repeatably."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.utils.deterministic
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidpipe.errors import VidpipeError

UseGpu = Literal["auto", "yes", "no"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


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


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in; None where it is off and all is fp32.

    auto: bf16 on a GPU, whose matrix units it feeds, and exact fp32 on a CPU.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within, matrices are multiplied in the dtype of `precision` on `device`.

    On a CPU in half precision, attention that will be differentiated is written out (softmax of a
    product): for sequences of a few dozen tokens the backward pass of torch's fused kernel takes several
    times as long there.
    """
    dtype = autocast_dtype(precision, device)
    written_out = device.type == "cpu" and dtype is not None and torch.is_grad_enabled()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        if written_out:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        else:
            yield


CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def set_determinism(wanted: bool = True) -> Iterator[None]:
    """Within, equal inputs give equal bits on one kind of device, and what cannot do so is refused.

    A warning would not do: attention's backward pass is only deterministic where torch is to raise.
    Afterwards all is as it was, so that what comes next in this process runs at its own speed. `wanted`
    False changes nothing.
    Raises VidpipeError where an operation has no deterministic implementation on its device.
    """
    if not wanted:
        yield
        return
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings = cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory
    workspace = os.environ.get(CUBLAS)
    try:
        os.environ[CUBLAS] = ":4096:8"
        cudnn.deterministic, cudnn.benchmark = True, False
        # Nothing here reads what it has not written; filling it would only take time.
        memory.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise VidpipeError(
            f"train.deterministic: {operation.split()[-1]} has no deterministic implementation on this "
            "device; set it to false, and two trainings may differ in their bits"
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = settings
        if workspace is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = workspace
