"""`vidpipe serve`: start the replicas, say where they are, and wait until it is to end."""

from __future__ import annotations

import ipaddress
import threading
from functools import partial
from typing import Any

from pipeline.infra.console import console
from pipeline.infra.own_page import own_hosts
from pipeline.infra.stopping import until_signal
from pipeline.tools.serving.service import NAME, Service, Settings
from pipeline.tools.serving.web import application
from vidpipe.errors import VidpipeError
from vidpipe.trained.card import read_card


def run(settings: Settings, host: str, port: int, replicas: int, address: str) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises VidpipeError where Ray Serve is not installed, the address is taken, names clash, or a model
    cannot be opened.
    """
    try:
        from pipeline.infra.ray.serve import Options, served
    except ImportError:
        raise VidpipeError("serve: Ray Serve is missing; pip install 'vidpipe[serve]'") from None
    refuse_names([name for name, _ in settings.models])
    for _, folder in settings.models:
        read_card(folder)  # most mistakes are seen before Ray is started
    options = Options(
        host,
        port,
        replicas,
        settings.threads,
        settings.max_queue,
        settings.batch_size,
        settings.batch_wait_s,
    )
    stopped = threading.Event()
    serving = served(partial(Service, settings), application, options, address)
    with serving as call, until_signal(stopped):  # after Ray, which sets its own
        console.print(summary(call("report")))
        console.print(f"http://{host}:{port} (Ctrl-C ends it)")
        while not stopped.wait(1):
            pass


def refuse_names(names: list[str]) -> None:
    """Raises VidpipeError for a name twice, or one that cannot stand in a URL."""
    for name in names:
        if names.count(name) > 1:
            raise VidpipeError(f"{name}: two models have this name; call one NAME=FOLDER")
        if not NAME.fullmatch(name):
            raise VidpipeError(f"{name}: no name of a model ({NAME.pattern}); call it NAME=FOLDER")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str, port: int) -> frozenset[str] | None:
    """The names that a server at `host` answers under: this machine's own, or any on other addresses."""
    if not is_loopback(host):
        return None
    named = f"[{host}]" if ":" in host else host
    return own_hosts(port) | own_hosts(port, [named])


def summary(report: dict[str, Any]) -> str:
    """A line a model, and what they take together."""
    lines = [
        f"{row['name']}: {row['method']} on {row['backbone']}, {row['task']}, "
        f"{len(row['classes'])} classes, {row['own_mb']:.1f} MB of its own"
        for row in report["models"]
    ]
    memory = report["memory_mb"]
    if memory["shared"]:
        lines.append(
            f"shared by several: {memory['shared']:.1f} MB; in all {memory['total']:.1f} MB, "
            f"apart it would be {memory['apart']:.1f} MB"
        )
    return "\n".join(lines)
