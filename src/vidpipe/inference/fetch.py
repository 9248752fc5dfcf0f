"""A video from a URL as a local file for a while: FFmpeg is never given an address."""

from __future__ import annotations

import ipaddress
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError

SCHEMES = frozenset({"http", "https", "s3", "gs", "az"})
"""Others reach into this machine (file, local, memory) or into archives (zip::)."""
CHUNK = 2**20
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that a gateway of the network translates into the IPv4 address in their last 32 bits."""


class PrivateAddressError(QuarantineError):
    """The URL leads to an address of this machine or its network (reason `missing_file`)."""

    def __init__(self, address: str) -> None:
        self.address = address
        detail = f"it leads to {address}, an address of this machine or its network"
        super().__init__("missing_file", detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return PrivateAddressError, (self.address,)


def is_url(source: str) -> bool:
    return "://" in source


@contextmanager
def local_copy(
    url: str, folder: Path | None, config: ExtractConfig, only_public: bool = False
) -> Iterator[Path]:
    """A temporary file in `folder`, removed afterwards. At most `config.max_mb`, `timeout_s`.

    A URL of the internet is not followed to an address of this machine or its network; with
    `only_public`, for http and https only, neither is a URL that names such an address itself.

    Raises QuarantineError: `missing_file` where it cannot be fetched (PrivateAddressError where it leads
    to such an address), `too_large`, `timeout`.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES or "::" in url:
        listed = ", ".join(sorted(SCHEMES))
        raise QuarantineError("missing_file", f"cannot fetch {scheme}://; expected {listed}")
    suffix = Path(urlsplit(url).path).suffix[:8]
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=folder) as file:
        try:
            _copy(url, file, config, only_public)
        except QuarantineError:
            raise
        except Exception as error:  # each kind of store has exceptions of its own
            line = (str(error).splitlines() or [""])[0]
            detail = f"cannot be fetched: {type(error).__name__} {line}".strip()
            raise QuarantineError("missing_file", detail) from None
        file.flush()
        yield Path(file.name)


def _copy(url: str, file: object, config: ExtractConfig, only_public: bool) -> None:
    deadline = time.monotonic() + config.timeout_s
    limit, size = config.max_mb * 2**20, 0
    refused: list[str] = []
    options: dict[str, Any] = {}
    if url.startswith("http"):
        # A plain stream: servers need not know ranges, nor say the length.
        options = {"block_size": 0, "skip_instance_cache": True}
        if only_public or _is_public(urlsplit(url).hostname or ""):
            options["get_client"] = partial(_public_client, refused)
    try:
        with fsspec.open(url, "rb", **options) as source:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise QuarantineError("too_large", f"more than {config.max_mb:g} MB")
                if time.monotonic() > deadline:
                    raise QuarantineError("timeout", f"fetching took over {config.timeout_s:g} s")
                file.write(chunk)  # type: ignore[attr-defined]
    except Exception:
        if refused:
            raise PrivateAddressError(refused[0]) from None
        raise


def _is_public(host: str) -> bool:
    """Whether all its addresses are the internet's. One that has none is: nothing can be fetched."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return True
    return all(_is_global(str(address[0])) for *_, address in found)


def _is_global(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or inside or ip  # which reach an IPv4 address
    return ip.is_global


async def _public_client(refused: list[str], **options: Any) -> Any:
    """A session that connects to addresses of the internet only, whatever names and redirects lead to.

    The user named a host there: who answers may not send us on to services of this machine (the
    reason to look at each connection: a name looked up before may have another address by then).
    """
    import aiohttp

    def connection(address: Any) -> socket.socket:
        family, kind, protocol, _, place = address
        if not _is_global(str(place[0])):
            refused.append(str(place[0]))
            raise OSError(f"{place[0]} is not an address of the internet")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(socket_factory=connection)
    return aiohttp.ClientSession(connector=connector, **options)
