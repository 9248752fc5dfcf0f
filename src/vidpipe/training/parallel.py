"""Training on several workers: what they tell each other, and nothing else.

Gradients are summed once a step, after its last part, in one message: the trained parameters are
all there is to send, and one without a gradient needs no search of the graph. Not chosen:
DistributedDataParallel, which at its start also sends the frozen backbone, and which has to be told
of unused parameters; its overlap with the backward pass gains nothing on a few adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sum(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all workers, on the CPU."""
    if not parallel():
        return values
    shared = values.to(device, torch.float64)
    dist.all_reduce(shared)
    return shared.cpu()


def any_worker(flag: bool, device: torch.device) -> bool:
    """Whether it is true on any worker; all of them must ask."""
    return flag if not parallel() else bool(all_sum(torch.tensor([float(flag)]), device).item())


def average_gradients(parameters: Sequence[nn.Parameter], world_size: int) -> None:
    """Each gradient becomes the mean over all workers; what has none anywhere still has none."""
    if not parallel():
        return
    device = parameters[0].device
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([used, *(part.reshape(-1).float() for part in parts)])
    dist.all_reduce(flat)
    anywhere = flat[: len(parameters)].tolist()
    at = len(parameters)
    for parameter, used_by in zip(parameters, anywhere, strict=True):
        mean = flat[at : at + parameter.numel()] / world_size
        at += parameter.numel()
        if used_by:
            parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def same_start(parameters: Sequence[nn.Parameter]) -> None:
    """Every worker starts from the first one's weights."""
    if parallel():
        with torch.no_grad():
            flat = torch.cat([p.reshape(-1) for p in parameters])
            dist.broadcast(flat, 0)
            at = 0
            for parameter in parameters:
                parameter.copy_(flat[at : at + parameter.numel()].view_as(parameter))
                at += parameter.numel()


def gathered(names: list[str]) -> list[str]:
    """All workers' names, in their order; all of them must ask."""
    if not parallel():
        return names
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, names)
    return [name for own in everyone for name in own]


def broadcast_from_rank0(name: str | None) -> str | None:
    """Rank 0's name, on every rank: a shared folder may show its files later on other nodes."""
    if not parallel():
        return name
    box = [name]
    dist.broadcast_object_list(box, 0)
    return box[0]
