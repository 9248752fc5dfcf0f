"""Several workers: the same order of clips, the same curve, and nothing sent but what is trained."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray_training
import torch
import torch.distributed as dist
from project import HELPERS, PROJECT
from trainings import make, trainer
from two_ranks import PARTIAL, finding, ranks, train

from vidpipe.errors import VidpipeError
from vidpipe.training import parallel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return ranks(folder)


@pytest.mark.slow
def test_two_workers_train_as_one_does(folder: Path, both: dict[str, list[dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    alone, data = train(0, 1, size=PARTIAL)
    history = alone.run()
    found = both["partial"]
    assert found[0]["history"] == found[1]["history"]
    for one, two in zip(history, found[0]["history"], strict=True):
        for key in ("train_loss", "val_loss", "grad_norm"):
            assert two[key] == pytest.approx(getattr(one, key), rel=1e-4), key
        assert (two["train_top1"], two["val_top1"]) == (one.train_top1, one.val_top1)
    asked = [[tuple(key) for key in r["asked"]] for r in found]
    assert sorted(itertools.chain(*asked)) == sorted(data.asked)
    assert asked[0][:5] == [*data.asked[:8:2], data.asked[8]]  # every other clip of a batch
    assert len(data.asked) == 3 * PARTIAL
    own = [torch.load(folder / "partial" / f"weights{rank}") for rank in range(2)]
    trained = sum(p.numel() for p in own[0].values())
    for name in own[0]:
        assert torch.equal(own[0][name], own[1][name]), name
    # Once a step the gradients, and a few numbers: never the frozen weights.
    assert max(found[0]["sent"]) == trained
    assert found[0]["sent"].count(trained) == 9


@pytest.mark.slow
def test_two_workers_stopped_anywhere_end_with_the_same_bits(
    folder: Path, both: dict[str, list[dict[str, Any]]]
) -> None:
    assert both["stopped"][0]["history"] == both["partial"][0]["history"]
    a, b = (torch.load(folder / name / "weights0") for name in ("partial", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_bad_loss_on_one_worker_ends_all_at_the_same_step(
    both: dict[str, list[dict[str, Any]]],
) -> None:
    one, other = (rank["error"] for rank in both["nan"])
    assert one == other
    assert one.startswith("loss is nan at step 0 (clips clip")


@pytest.mark.slow
def test_two_workers_find_the_rate_that_one_does(both: dict[str, list[dict[str, Any]]]) -> None:
    torch.set_num_threads(1)
    alone, _ = finding(0, 1)
    alone.run()
    one, other = (rank["lr"] for rank in both["auto"])
    assert one == other == pytest.approx(alone.progress.lr, rel=0.2)


@pytest.mark.slow
def test_gradients_that_some_or_no_worker_has(both: dict[str, list[dict[str, Any]]]) -> None:
    assert [rank["error"] for rank in both["unused"]] == ["fine", "fine"]


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


def by_ray(folder: Path, case: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(PROJECT / part) for part in ("src", "", "tests/helpers"))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(HELPERS / "ray_training.py"), str(folder), case],
        capture_output=True,
        text=True,
        env=env,
        timeout=500,
    )


@pytest.mark.long
@pytest.mark.slow
def test_ray_starts_lost_workers_again_and_they_go_on(
    tmp_path: Path, both: dict[str, list[dict[str, Any]]]
) -> None:
    done = by_ray(tmp_path / "lost", "lost")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "lost" / "died").exists()
    resumed = (tmp_path / "lost" / "from").read_text()
    assert resumed.rsplit("/", 1)[1] in ("00000003-0001", "00000004-0001", "00000004-0002")
    expected = both["plain"][0]["history"]
    from vidpipe.training.metrics import EpochMetrics

    assert (tmp_path / "lost" / "history").read_text() == repr(
        [EpochMetrics(**m) for m in expected]
    )


@pytest.mark.long
@pytest.mark.usefixtures("one_ray")
def test_ray_does_not_repeat_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match=r"^params are wrong$"):
        ray_training.run(tmp_path / "mistake", "mistake")
    assert (tmp_path / "mistake" / "tries0").read_text() == "x"


def test_a_worker_alone_talks_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", None)
    assert trainer(make()).run()
