"""Several workers: the same order of clips, the same curve, and nothing sent but what is trained."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import PROJECT
from test_engine import make, settings, trainer, weights
from test_training import HALF, Moving

from vidpipe.training import parallel
from vidpipe.training.loop import Trainer
from vidpipe.training.optim import trained_parameters
from vidpipe.training.state import Checkpoints

PARTIAL = 17
"""Clips of which the last batch of 8 has one: the second rank has none of it."""


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


def one_rank(rank: int, world: int, folder: str, case: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    sent = []
    original = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counted
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
    else:
        run, data = train(rank, world, size=PARTIAL if case == "partial" else 16)
        run.run()
    out: dict[str, Any] = {"error": error, "sent": sent}
    if not error:
        out["history"] = [vars(m) for m in run.progress.history]
        out["asked"] = data.asked
        torch.save(weights(run.model), f"{folder}/weights{rank}")
    Path(f"{folder}/{rank}.json").write_text(json.dumps(out))
    dist.destroy_process_group()


def unused(rank: int) -> None:
    a, b, c = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    a.grad = torch.full((2,), float(rank))
    if rank == 0:
        b.grad = torch.ones(2)
    d = torch.nn.Parameter(torch.ones(5, 3, 7))
    d.grad = torch.arange(105.0).view(7, 3, 5).transpose(0, 2) * (rank + 1)
    parallel.BUCKET = 5  # less than a row of d: several messages, and d in several of them
    parallel.average_gradients([a, b, c, d], 2)
    assert torch.equal(d.grad, torch.arange(105.0).view(7, 3, 5).transpose(0, 2) * 1.5)
    parallel.same_start([e := torch.nn.Parameter(torch.full((4, 3), float(rank)))])
    assert not e.any()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.tolist() == b.grad.tolist() == [0.5, 0.5]
    assert c.grad is None  # AdamW leaves it alone, as one worker would


def ranks(folder: Path, case: str) -> list[dict[str, Any]]:
    folder.mkdir()
    mp.start_processes(one_rank, (2, str(folder), case), nprocs=2, start_method="spawn")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_workers_train_as_one_does(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone, data = train(0, 1, size=PARTIAL)
    history = alone.run()
    both = ranks(tmp_path / "two", "partial")
    assert both[0]["history"] == both[1]["history"]
    for one, two in zip(history, both[0]["history"], strict=True):
        for key in ("train_loss", "val_loss", "grad_norm"):
            assert two[key] == pytest.approx(getattr(one, key), rel=1e-4), key
        assert (two["train_top1"], two["val_top1"]) == (one.train_top1, one.val_top1)
    asked = [[tuple(key) for key in r["asked"]] for r in both]
    assert sorted(itertools.chain(*asked)) == sorted(data.asked)
    assert asked[0][:5] == [*data.asked[:8:2], data.asked[8]]  # every other clip of a batch
    assert len(data.asked) == 3 * PARTIAL
    own = [torch.load(tmp_path / "two" / f"weights{rank}") for rank in range(2)]
    trained = sum(p.numel() for p in own[0].values())
    for name in own[0]:
        assert torch.equal(own[0][name], own[1][name]), name
    # Once a step the gradients, and a few numbers: never the frozen weights.
    assert max(both[0]["sent"]) == trained
    assert both[0]["sent"].count(trained) == 9


@pytest.mark.slow
def test_two_workers_stopped_anywhere_end_with_the_same_bits(tmp_path: Path) -> None:
    whole = ranks(tmp_path / "whole", "partial")
    stopped = ranks(tmp_path / "stopped", "stopped")
    assert stopped[0]["history"] == whole[0]["history"]
    a, b = (torch.load(tmp_path / name / "weights0") for name in ("whole", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_bad_loss_on_one_worker_ends_all_at_the_same_step(tmp_path: Path) -> None:
    both = ranks(tmp_path / "nan", "nan")
    assert both[0]["error"] == both[1]["error"]
    assert both[0]["error"].startswith("loss is nan at step 0 (clips clip")


@pytest.mark.slow
def test_gradients_that_some_or_no_worker_has(tmp_path: Path) -> None:
    assert [r["error"] for r in ranks(tmp_path / "unused", "unused")] == ["fine", "fine"]


def peak_bytes(work: Callable[[], None]) -> int:
    """The most that `work` held at one time beyond what was there before it."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_averaging_holds_one_message_beside_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one tensor is larger than a message, as in full fine-tuning."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    sizes = [(1024, 1024), *[(300, 300)] * 20, (7,)]
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.rand_like(parameter)
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    monkeypatch.setattr(parallel, "BUCKET", 2**18)
    # A backend of torch's own, whose other rank says nothing: what is sent comes back as it was.
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        peak = peak_bytes(lambda: parallel.average_gradients(parameters, 2))
        start = peak_bytes(lambda: parallel.same_start(parameters))
    finally:
        dist.destroy_process_group()
    message = 4 * 2**18
    assert 0.9 * message < peak < 1.1 * message
    assert 0.9 * message < start < 1.1 * message
    for parameter, gradient in zip(parameters, before, strict=True):
        assert torch.equal(parameter.grad, gradient / 2)  # type: ignore[arg-type]


RAY = """
import os, sys, signal
from pathlib import Path
sys.path.insert(0, "TESTS")
from pipeline.infra.ray import train as cluster

def worker(payload):
    import torch
    torch.set_num_threads(1)
    from test_parallel import train
    from vidpipe.errors import VidpipeError
    rank = cluster.rank()
    run, data = train(rank, cluster.world_size(), folder=payload["run"] + "/checkpoints")
    note = Path(payload["run"]) / "died"
    def on_step(info):
        if payload["case"] == "mistake" and info.step == 2:
            with (Path(payload["run"]) / f"tries{rank}").open("a") as file:
                file.write("x")
            raise VidpipeError("params are wrong")
        if payload["case"] == "lost" and rank == 1 and info.step == 4 and not note.exists():
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    run.on_step = on_step
    run.on_epoch = lambda metrics, timing: cluster.report({"loss": metrics.train_loss})
    run.run()
    if rank == 0:
        (Path(payload["run"]) / "history").write_text(repr(run.progress.history))
        (Path(payload["run"]) / "from").write_text(str(run.resumed_from))

if __name__ == "__main__":
    from test_engine import settings
    folder, case = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir()
    config = settings(num_workers=2, memory_gb_per_worker=0.3, use_gpu="no")
    cluster.train(worker, {"run": str(folder), "case": case}, config, folder)
"""


def by_ray(tmp_path: Path, case: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "by_ray.py"
    script.write_text(RAY.replace("TESTS", str(PROJECT / "tests")))
    path = os.pathsep.join(str(PROJECT / part) for part in ("src", "", "tests"))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script), str(tmp_path / case), case],
        capture_output=True,
        text=True,
        env=env,
        timeout=500,
    )


@pytest.mark.slow
def test_ray_starts_lost_workers_again_and_they_go_on(tmp_path: Path) -> None:
    done = by_ray(tmp_path, "lost")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "lost" / "died").exists()
    resumed = (tmp_path / "lost" / "from").read_text()
    assert resumed.rsplit("/", 1)[1] in ("00000003-0001", "00000004-0001", "00000004-0002")
    expected = ranks(tmp_path / "two", "plain")[0]["history"]
    from vidpipe.training.metrics import EpochMetrics

    assert (tmp_path / "lost" / "history").read_text() == repr(
        [EpochMetrics(**m) for m in expected]
    )


@pytest.mark.slow
def test_ray_does_not_repeat_a_users_mistake(tmp_path: Path) -> None:
    done = by_ray(tmp_path, "mistake")
    assert done.returncode == 1
    assert "VidpipeError: params are wrong" in done.stderr.strip().splitlines()[-1]
    assert (tmp_path / "mistake" / "tries0").read_text() == "x"


def test_a_worker_alone_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", None)
    assert trainer(make()).run()
