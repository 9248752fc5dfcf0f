"""A server on this machine that only its own pages and this machine's programs may ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LOOPBACK = "127.0.0.1"


def own_hosts(port: int, names: Iterable[str] = (LOOPBACK, "localhost")) -> frozenset[str]:
    """What a browser's Host is for a server of this machine at `port`."""
    # Browsers leave out the port of http.
    end = "" if port == 80 else f":{port}"
    return frozenset(f"{name}{end}" for name in names)


class OwnPage:
    """ASGI middleware: answers this page only, to whoever opened it under its own name.

    Any other Host is a name that somebody let point here (DNS rebinding): its page could read ours. Any
    other Origin is a page of somebody else that posts to ours.

    Args:
        app: what is protected.
        hosts: its own, of `own_hosts`.
        refusal: the ASGI answer to all others.
    """

    def __init__(self, app: Any, hosts: frozenset[str], refusal: Any) -> None:
        self.app, self.hosts, self.refusal = app, hosts, refusal
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            given = [(key, value.decode("latin-1")) for key, value in scope["headers"]]
            hosts = {value for key, value in given if key == b"host"}
            origins = {value for key, value in given if key == b"origin"}
            if not hosts or hosts - self.hosts or origins - self.origins:
                await self.refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)
