"""Training on several workers: what they tell each other, and nothing else.

Gradients are summed once a step, after its last part, in messages of at most `BUCKET` numbers: the
trained parameters are all there is to send, and one without a gradient needs no search of the graph.
Beside the gradients, one such message is held. Not chosen:
DistributedDataParallel, which at its start also sends the frozen backbone, and which has to be told
of unused parameters; its overlap with the backward pass gains nothing on a few adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
BUCKET = 2**22
"""Numbers of one message: 16 MiB of fp32."""


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
    used = torch.tensor(
        [float(p.grad is not None) for p in parameters], device=parameters[0].device
    )
    dist.all_reduce(used)
    gradients = []
    for parameter, used_by in zip(parameters, used.tolist(), strict=True):
        if used_by:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for message in _in_messages(gradients):
        dist.all_reduce(message)
        message /= world_size


@torch.no_grad()
def same_start(parameters: Sequence[nn.Parameter]) -> None:
    """Every worker starts from the first one's weights."""
    if parallel():
        for message in _in_messages([p.detach() for p in parameters]):
            dist.broadcast(message, 0)


def _in_messages(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """All numbers of `tensors` in turn, as fp32 messages of at most `BUCKET`; what the caller makes of
    a message, in place, is written back before the next one."""
    if not tensors:
        return
    buckets: list[list[Tensor]] = []
    size = BUCKET
    for piece in (piece for tensor in tensors for piece in _pieces(tensor)):
        if size + piece.numel() > BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(piece)
        size += piece.numel()
    sizes = [[piece.numel() for piece in bucket] for bucket in buckets]
    # One buffer for all: the caller still has the last message when it asks for the next.
    buffer = torch.empty(max(map(sum, sizes), default=0), device=tensors[0].device)
    for bucket, each in zip(buckets, sizes, strict=True):
        message = buffer[: sum(each)]
        parts = message.split(each)
        for part, piece in zip(parts, bucket, strict=True):
            part.view_as(piece).copy_(piece)
        yield message
        for part, piece in zip(parts, bucket, strict=True):
            piece.copy_(part.view_as(piece))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Views of `tensor`, which may lie in memory in any order, of at most `BUCKET` numbers."""
    if tensor.numel() <= BUCKET:
        yield tensor
    elif (rows := BUCKET // tensor[0].numel()) > 0:
        yield from tensor.split(rows)
    else:
        for row in tensor:
            yield from _pieces(row)


def gathered(own: list[T]) -> list[T]:
    """All workers' items, in the order of workers; all of them must ask."""
    if not parallel():
        return own
    everyone: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return [item for items in everyone for item in items]


def broadcast_from_rank0(name: str | None) -> str | None:
    """Rank 0's name, on every rank: a shared folder may show its files later on other nodes."""
    if not parallel():
        return name
    box = [name]
    dist.broadcast_object_list(box, 0)
    return box[0]
