"""Ray for many tasks that know nothing of each other: decoding, evaluation, predictions."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from pipeline.infra.ray.connection import joined
from vidpipe.device import UseGpu, choose_device
from vidpipe.errors import VidpipeError

LOSSES = 5
"""Lost actors for each worker, with no result in between, that end it."""
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
)


def run_tasks(
    tasks: Iterable[Any],
    make: Callable[[], Callable[[Any], Any]],
    workers: int,
    address: str,
    section: str,
    use_gpu: UseGpu = "no",
) -> Iterator[Any]:
    """Results of `make()(task)` as they come, from `workers` actors of the Ray at `address`.

    `local` starts a Ray of our own. Each actor has a GPU of its own where `use_gpu` says so; auto: where
    the cluster has any. Raises VidpipeError, naming `section` of the params, when there is
    no such Ray, when it is too small, and when actors die and die without a result.
    """
    with joined(address, f"{section}.ray_address", workers), _users_errors():
        resources = ray.cluster_resources()
        gpu = choose_device(use_gpu, resources.get("GPU", 0)).type == "cuda"
        unit = "GPU" if gpu else "CPU"
        have = int(resources.get(unit, 0))
        if have < workers:
            raise VidpipeError(
                f"{section}.num_workers: {workers} workers need a {unit} each; the Ray at {address} "
                f"has {have}"
            )
        actor = ray.remote(_Holder).options(  # type: ignore[attr-defined]
            num_cpus=1, num_gpus=int(gpu), scheduling_strategy="SPREAD"
        )
        yield from _share_out(tasks, lambda: actor.remote(make), workers, section)


class _Holder:
    """An actor: makes its function once, then applies it to one task after another."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.make = make

    def start(self) -> None:
        # Not in __init__, where an error would look like a lost actor.
        self.function = self.make()

    def apply(self, task: Any) -> Any:
        return self.function(task)


def _share_out(
    tasks: Iterable[Any], new_actor: Callable[[], Any], workers: int, section: str
) -> Iterator[Any]:
    """What a lost actor had to do goes to the others; a new one is asked for, and works once Ray finds
    room for it.

    Not chosen: Ray's own restarts, where the tasks of an actor that finds no room wait for it, though
    others are free; plain Ray tasks, each of which would load a model.
    """
    queue, again = iter(tasks), deque[Any]()
    doing: dict[Any, tuple[Any, list[Any]]] = {}  # promise -> actor, [its task]; []: it starts
    idle: list[Any] = []
    lost, losses = set[Any](), 0

    def ask() -> None:
        actor = new_actor()
        doing[actor.start.remote()] = actor, []

    def give(actor: Any) -> None:
        if again or (more := list(itertools.islice(queue, 1))):
            task = again.popleft() if again else more[0]
            doing[actor.apply.remote(task)] = actor, [task]
        else:
            idle.append(actor)

    for _ in range(workers):
        ask()
    # Somebody is idle: nothing is left in the queue, and `again` was offered to all of them.
    while not idle or any(task for _, task in doing.values()):
        (promise,), _ = ray.wait(list(doing), num_returns=1)
        actor, task = doing.pop(promise)
        try:
            result = ray.get(promise)
        except LOST as error:
            again.extend(task)
            if actor not in lost:
                lost.add(actor)
                losses += 1
                if losses > LOSSES * workers:
                    line = (str(error).splitlines() or ["?"])[0]
                    raise VidpipeError(
                        f"{section}.num_workers: {losses} Ray workers died one after the other "
                        f"({line}); see Ray's logs of their nodes, and lower it if memory ran out"
                    ) from error
                ask()
            while again and idle:
                give(idle.pop())
            continue
        if actor not in lost:
            give(actor)
        if task:
            losses = 0
            yield result
        else:
            give(actor)  # a task more than it works on, so that it never waits for the next


@contextmanager
def _users_errors() -> Iterator[None]:
    """A VidpipeError raised on a worker comes back as itself."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VidpipeError):
            raise VidpipeError(str(error.cause)) from error
        raise


Rows = Callable[[Iterable[str]], Iterator[dict[str, Any]]]
STREAM_BATCH = 16
"""Inputs that a worker takes at a time."""


def stream(
    inputs: Iterable[str],
    make: Callable[[], Rows],
    schema: Any,
    workers: int,
    address: str,
    use_gpu: UseGpu,
) -> Iterator[dict[str, Any]]:
    """Rows that `make()(some inputs)` gives, as they come, from `workers` actors of Ray Data.

    Rows are of the Arrow `schema`. `local` starts a Ray of our own. Each actor has a GPU of its own
    where `use_gpu` says so, and there are no more actors than GPUs then: Ray would wait for them.
    Raises VidpipeError when there is no such Ray.
    """
    import pyarrow as pa
    import ray.data

    class Worker:
        def __init__(self) -> None:
            self.rows = make()

        def __call__(self, batch: Any) -> Iterator[Any]:
            for row in self.rows(batch["input"].tolist()):
                yield pa.Table.from_pylist([row], schema=schema)

    with joined(address, "--ray", workers):
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpu := choose_device(use_gpu, gpus).type == "cuda":
            workers = min(workers, gpus)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # Many small blocks, so that workers share them out.
        queue, blocks = iter(inputs), []
        while block := list(itertools.islice(queue, STREAM_BATCH)):
            blocks.append(pa.table({"input": pa.array(block, pa.large_string())}))
        found = ray.data.from_arrow(blocks).map_batches(
            Worker,
            batch_size=STREAM_BATCH,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if gpu else None,
        )
        yield from found.iter_rows()
