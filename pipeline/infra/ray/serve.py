"""Ray Serve for a service that knows nothing of Ray: replicas, batches, and calls that reach them all.

One deployment, whose replicas hold everything: an upload is decoded where it arrives, and its frames
never travel between replicas.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Protocol

import ray
import ray.exceptions
from ray import serve

from pipeline.infra.ray.connection import joined
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError

APP = "vidpipe"
SPARE = 1000
"""Requests beyond a replica's own queue that it may have at a time, only to send them away."""


class Hosted(Protocol):
    """What a replica holds."""

    def compute(self, items: Sequence[Any]) -> list[Any]:
        """A result or an Exception of each."""

    def close(self) -> None: ...


Make = Callable[[Any], Hosted]
"""A service from what was kept last, or from None."""


@dataclass(frozen=True)
class Options:
    """How a service is run.

    Args:
        host, port: of HTTP, on each node that has a replica.
        replicas: how many.
        threads: CPUs of each.
        max_queue: requests that a replica works on at a time, which it sees to itself.
        batch_size, batch_wait_s: items that are computed together, how long the first waits for more.
    """

    host: str
    port: int
    replicas: int
    threads: int
    max_queue: int
    batch_size: int
    batch_wait_s: float


class _Kept:
    """An actor: what a replica that starts later has to know."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value


class _Replica:
    """One service, and the host that its application is given."""

    def __init__(
        self, make: Make, application: Callable[[Any, Any], Any], options: Options, kept: Any
    ) -> None:
        self.kept = kept
        self.application = application
        self.options = options
        self.error = ""
        self.hosted: Hosted | None = None
        # One at a time: a model has all the threads.
        self.computer = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.changer = ThreadPoolExecutor(1, thread_name_prefix="changes")
        try:
            self.hosted = make(ray.get(kept.get.remote()))
        except VidpipeError as error:  # Ray would try it again and again
            self.error = str(error)
        batches: Any = type(self)._batch
        batches.set_max_batch_size(options.batch_size)
        batches.set_batch_wait_timeout_s(options.batch_wait_s)

    def __serve_build_asgi_app__(self) -> Any:
        if self.hosted is None:
            return _nothing
        return self.application(self.hosted, self)

    def __del__(self) -> None:
        if (hosted := getattr(self, "hosted", None)) is not None:
            hosted.close()

    def state(self) -> str:
        """Why the service could not be made; empty where it was."""
        return self.error

    async def call(self, method: str, *arguments: Any) -> Any:
        """Of the service here. A VidpipeError is a result: Ray would wrap it."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.changer, lambda: getattr(self.hosted, method)(*arguments)
            )
        except VidpipeError as error:
            return error

    # -- the host of the application ------------------------------------------------------------

    async def together(self, item: Any) -> Any:
        result = await self._batch(item)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _batch(self, items: list[Any]) -> list[Any]:
        assert self.hosted is not None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.computer, self.hosted.compute, items)

    async def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        if self.options.replicas == 1:
            return [await self.call(method, *arguments)]
        handle = serve.get_deployment_handle(APP, APP)
        found: list[Any] = await handle.broadcast("call", method, *arguments).results_async()
        return found

    async def keep(self, value: Any) -> None:
        await self.kept.set.remote(value)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """The application of a replica that has no service: the driver asks for its error and ends it."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": "not open"}\n'})


@contextmanager
def served(
    make: Make, application: Callable[[Any, Any], Any], options: Options, address: str
) -> Iterator[Callable[..., Any]]:
    """Context manager that serves `application(make(...), host)` on the Ray at `address`.

    `local` starts a Ray of our own. Yields a function that calls a method of one replica's service.
    Raises VidpipeError where the port is taken, the Ray is too small, or a replica's `make` does.
    """
    refuse_taken(options.host, options.port)
    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cpus = options.replicas * options.threads
    with ExitStack() as stack:
        stack.enter_context(joined(address, "--ray", cpus, log_to_driver=False))
        # Ray's own would print where in its code the signal came, and end nothing of what it started.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        resources = ray.cluster_resources()
        gpu = choose_device("auto", resources.get("GPU", 0)).type == "cuda"
        if (have := int(resources.get("CPU", 0))) < cpus:
            raise VidpipeError(
                f"--replicas {options.replicas}: need {cpus} CPUs with --threads {options.threads}; "
                f"the Ray at {address} has {have}"
            )
        kept = ray.remote(_Kept).options(num_cpus=0).remote()  # type: ignore[attr-defined]
        bound = _deployment(options, gpu).bind(make, application, options, kept)
        stack.callback(_end)
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": options.host, "port": options.port},
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            handle = serve.run(bound, name=APP, route_prefix="/")
            errors = handle.broadcast("state").results()
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            line = (str(error).splitlines() or ["no answer"])[0]
            raise VidpipeError(f"serve: Ray Serve did not start: {line}") from error
        if said := next(filter(None, errors), None):
            raise VidpipeError(said)
        yield lambda *call: handle.call.remote(*call).result()


def _end() -> None:
    """Ray tells of every actor that it ends, and of who still asked it something."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        serve.shutdown()
        time.sleep(0.5)  # what it says comes from another thread


def _deployment(options: Options, gpu: bool) -> Any:
    return serve.deployment(
        name=APP,
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.threads, "num_gpus": int(gpu)},
        max_ongoing_requests=options.max_queue + SPARE,
        # Beyond even those, Ray itself sends away, before it keeps their bodies.
        max_queued_requests=SPARE,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=5,
        health_check_timeout_s=120,  # a model may be loaded meanwhile
    )(serve.ingress()(_Replica))


def refuse_taken(host: str, port: int) -> None:
    """Raises VidpipeError where nobody can listen at `host` and `port`."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VidpipeError(f"--host {host}, --port {port}: {reason}; name another") from None
