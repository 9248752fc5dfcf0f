"""Real Ray actors that die under their tasks: every result comes once, from whoever is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.infra.ray.tasks import run_tasks
from vidpipe.errors import VidpipeError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("one_ray")]


def on_ray(tasks: Any, make: Callable[[], Callable[[Any], Any]], workers: int = 2) -> list[Any]:
    return list(run_tasks(tasks, make, workers, "local", "extract"))


def test_tasks_are_taken_one_by_one_and_each_comes_back_once() -> None:
    asked: list[int] = []

    def tasks() -> Iterator[int]:
        for i in range(40):
            asked.append(i)
            yield i

    found = []
    for result in run_tasks(tasks(), lambda: lambda i: i * i, 2, "local", "extract"):
        found.append(result)
        assert len(asked) <= len(found) + 6  # 240,000 of them must not pile up
    assert sorted(found) == [i * i for i in range(40)]
    assert on_ray([], lambda: lambda i: i, 1) == []
    assert on_ray([5], lambda: lambda i: i) == [5]


def test_a_killed_actor_loses_no_task(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def make() -> Callable[[int], int]:
        def work(i: int) -> int:
            mark = Path(folder) / str(i)
            if i in (0, 3, 11) and not mark.exists():  # 11 is the last: others are idle then
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return i

        return work

    assert sorted(on_ray(range(12), make)) == list(range(12))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.long
def test_a_task_that_kills_every_actor_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.infra.ray.tasks.LOSSES", 1)

    def make() -> Callable[[int], int]:
        return lambda i: os.kill(os.getpid(), signal.SIGKILL) or i if i == 2 else i

    with pytest.raises(VidpipeError, match=r"extract\.num_workers: 2 Ray workers died"):
        on_ray(range(5), make, 1)


def test_a_users_error_comes_back_as_itself_and_so_does_that_of_a_start() -> None:
    def failing_start() -> Callable[[int], int]:
        raise VidpipeError("no such model")

    def failing_task(i: int) -> int:
        raise VidpipeError(f"task {i}")

    # One worker: each actor is a process that imports torch.
    with pytest.raises(VidpipeError, match=r"^no such model$"):
        on_ray(range(3), failing_start, 1)
    with pytest.raises(VidpipeError, match=r"^task 0$"):
        on_ray(range(3), lambda: failing_task, 1)
    with pytest.raises(VidpipeError, match=r"extract\.num_workers: 9 workers need a CPU each"):
        on_ray(range(3), lambda: failing_task, 9)
