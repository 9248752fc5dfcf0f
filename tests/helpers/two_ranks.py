"""Trainings on two ranks, in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from moving_clips import HALF, Moving
from trainings import make, settings, weights

from vidpipe.training import parallel
from vidpipe.training.loop import Trainer
from vidpipe.training.optim import trained_parameters
from vidpipe.training.state import Checkpoints

PARTIAL = 17
"""Clips of which the last batch of 8 has one: the second rank has none of it."""

CASES = ("partial", "stopped", "plain", "unused", "nan", "auto")


class Seen(Moving):
    """Keeps the order in which clips were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(size, False)
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, key: Any) -> dict[str, Any]:
        self.asked.append(tuple(key))
        return super().__getitem__(key)


def train(rank: int, world: int, **config: Any) -> tuple[Trainer, Seen]:
    data, folder = Seen(config.pop("size", 16)), config.pop("folder", None)
    noise = {"drop_path": 0.5, "head_dropout": 0.3}
    model = make("aim", **noise) if rank == 0 else make("aim", lr=1e-2, **noise)
    if rank:  # as if it had been built otherwise: rank 0's weights must win
        with torch.no_grad():
            for parameter in trained_parameters(model).values():
                parameter += 1
    options = {"epochs": 3, "clip_grad_norm": 0.5, "checkpoint_every": 1, **config}
    run = Trainer(
        model,
        data,
        Moving(7, True),  # an odd number: one rank has a batch fewer
        settings(**options),
        HALF,
        rank=rank,
        world_size=world,
        checkpoints=Checkpoints(Path(folder)) if folder else None,
    )
    return run, data


def one_rank(rank: int, world: int, folder: str) -> None:
    """All cases, one after the other: to start a process takes longer than any of them."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    sent: list[int] = []
    original = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counted
    for case in CASES:
        sent.clear()
        out = one_case(rank, world, f"{folder}/{case}", case)
        Path(f"{folder}/{case}/{rank}.json").write_text(json.dumps({**out, "sent": sent}))
        dist.barrier()
    dist.destroy_process_group()


def one_case(rank: int, world: int, folder: str, case: str) -> dict[str, Any]:
    error = ""
    if case == "unused":
        unused(rank)
        error = "fine"
    elif case == "nan":
        run, _ = train(rank, world)
        if rank == 1:
            run.normalisation = ((float("nan"),) * 3, (0.5,) * 3)
        try:
            run.run()
        except Exception as raised:
            error = str(raised)
    elif case == "stopped":
        for stops in range(40):
            run, data = train(rank, world, size=PARTIAL, folder=f"{folder}/checkpoints")
            dist.barrier()
            if rank == 1 and stops < 5:  # the request reaches one worker only
                run.stop = lambda: True
            try:
                run.run()
                break
            except Exception as raised:
                if type(raised).__name__ != "TrainingStopped":
                    raise
            dist.barrier()
    elif case == "auto":
        run, data = finding(rank, world)
        run.run()
    else:
        run, data = train(rank, world, size=PARTIAL if case == "partial" else 16)
        run.run()
    if error:
        return {"error": error}
    torch.save(weights(run.model), f"{folder}/weights{rank}")
    lr = {"lr": run.progress.lr}
    return {"history": [vars(m) for m in run.progress.history], "asked": data.asked, **lr}


def finding(rank: int, world: int) -> tuple[Trainer, Seen]:
    """A training that finds its rate."""
    run, data = train(rank, world, epochs=1, warmup_epochs=0)
    run.model.config = run.model.config.model_copy(update={"lr": "auto"})
    return run, data


def unused(rank: int) -> None:
    a, b, c = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    a.grad = torch.full((2,), float(rank))
    if rank == 0:
        b.grad = torch.ones(2)
    d = torch.nn.Parameter(torch.ones(5, 3, 7))
    d.grad = torch.arange(105.0).view(7, 3, 5).transpose(0, 2) * (rank + 1)
    bucket, parallel.BUCKET = (
        parallel.BUCKET,
        5,
    )  # less than a row of d, which takes several messages
    parallel.average_gradients([a, b, c, d], 2)
    assert torch.equal(d.grad, torch.arange(105.0).view(7, 3, 5).transpose(0, 2) * 1.5)
    parallel.same_start([e := torch.nn.Parameter(torch.full((4, 3), float(rank)))])
    parallel.BUCKET = bucket
    assert not e.any()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == b.grad.tolist() == [0.5, 0.5]
    assert c.grad is None  # AdamW leaves it alone, as one worker would


def ranks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What both ranks say of each case; their weights lie in its folder."""
    for case in CASES:
        (folder / case).mkdir()
    mp.start_processes(one_rank, (2, str(folder)), nprocs=2, start_method="spawn")
    return {
        case: [json.loads((folder / case / f"{rank}.json").read_text()) for rank in range(2)]
        for case in CASES
    }
