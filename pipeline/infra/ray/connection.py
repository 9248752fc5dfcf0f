"""One place that starts a Ray cluster on this machine or joins a running one."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from vidpipe.errors import VidpipeError

ANSWER_S = 5.0
"""Ray itself tries an address where nobody answers for more than 100 s."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What opens a connection of HTTP/2, which Ray speaks: its greeting, and no settings."""
SETTINGS = 4
"""The kind of frame that a server answers with, in its fourth byte (RFC 9113, 3.4)."""


def where_ray_is() -> str:
    """The address to use: RAY_ADDRESS, or `local` for a Ray of our own. Without an address Ray would
    join whichever runs on this machine."""
    return os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def joined(
    address: str, option: str, cpus: int | None = None, log_to_driver: bool = True
) -> Iterator[None]:
    """A running Ray meanwhile: that which runs in this process already, that at `address`, or, for
    `local`, one of our own of `cpus`.

    Raises VidpipeError, naming `option` or RAY_ADDRESS, when nobody answers there within seconds.
    """
    if ray.is_initialized():
        yield
        return
    own = cpus if address == "local" else None
    try:
        refuse_silence(address)
        # Workers import this project from where it is installed; Ray must not try to ship it.
        ray.init(
            address,
            num_cpus=own,
            include_dashboard=False,
            log_to_driver=log_to_driver,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        source = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else option
        line = (str(error).splitlines() or ["no answer"])[0]
        raise VidpipeError(f"{source}: the Ray at {address}: {line}") from None
    try:
        yield
    finally:
        ray.shutdown()


def refuse_silence(address: str) -> None:
    """Raises OSError where HOST:PORT is nobody's, or of somebody who does not speak as Ray does."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return  # such as `local` and `auto`, or for Ray to refuse
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false", ""):
                return
            connection.sendall(PREFACE)
            answer = connection.recv(4, socket.MSG_WAITALL)
    except TimeoutError:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s") from None
    except OSError as error:
        raise OSError((error.strerror or str(error)).lower()) from None
    if len(answer) < 4 or answer[3] != SETTINGS:
        raise OSError("something else answers there")
