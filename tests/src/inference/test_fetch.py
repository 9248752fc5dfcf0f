"""Videos from URLs: real servers and redirects, which cannot lead to services of this machine."""

from __future__ import annotations

import http.server
import pickle
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from vidpipe.inference import fetch
from vidpipe.inference.fetch import PrivateAddressError, local_copy
from vidpipe.video.config import ExtractConfig
from vidpipe.video.quarantine import QuarantineError

CONFIG = ExtractConfig(short_side=32)
INTERNET = "127.0.0.2"
"""Stands for an address of the internet; 127.0.0.1 is what it is."""


class _Server(http.server.BaseHTTPRequestHandler):
    """/video is one; /to/HEX leads to the URL that HEX spells. `asked` holds the paths asked for."""

    def __init__(self, asked: list[str], *args: object) -> None:
        self.asked = asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", bytes.fromhex(self.path[4:]).decode())
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a video")

    def log_message(self, *args: object) -> None:
        pass


class Served:
    def __init__(self, address: str) -> None:
        self.asked: list[str] = []
        handler = partial(_Server, self.asked)
        self.server = http.server.ThreadingHTTPServer((address, 0), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, Served]]:
    """One of the internet, one of this machine."""
    monkeypatch.setattr(fetch, "_is_global", lambda address: address == INTERNET)
    with ExitStack() as stack:
        try:
            there = stack.enter_context(Served(INTERNET))
        except OSError:
            pytest.skip("this system has one loopback address only")
        yield there, stack.enter_context(Served("127.0.0.1"))


def to(url: str) -> str:
    """The path of a redirect."""
    return f"/to/{url.encode().hex()}"


def fetched(url: str, folder: Path) -> bytes:
    with local_copy(url, folder, CONFIG) as path:
        return path.read_bytes()


def test_the_internet_leads_to_the_internet(servers: tuple[Served, Served], tmp_path: Path) -> None:
    there, _ = servers
    video = f"http://{INTERNET}:{there.port}/video"
    assert fetched(video, tmp_path) == b"a video"
    assert fetched(f"http://{INTERNET}:{there.port}{to(video)}", tmp_path) == b"a video"
    assert set(there.asked) == {"/video", to(video)}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("hops", [1, 2])
def test_the_internet_does_not_lead_to_this_machine(
    servers: tuple[Served, Served], tmp_path: Path, host: str, hops: int
) -> None:
    """By an address, by a name that is looked up, by a second redirect."""
    there, here = servers
    url = f"http://{host}:{here.port}/video"
    for _ in range(hops):
        url = f"http://{INTERNET}:{there.port}{to(url)}"
    with pytest.raises(QuarantineError, match=r"missing_file: ") as caught:
        fetched(url, tmp_path)
    if host in ("127.0.0.1", "localhost"):
        assert "an address of this machine or its network" in caught.value.detail
    assert len(there.asked) == hops
    assert not here.asked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_that_the_user_names_may_be_of_this_machine(
    servers: tuple[Served, Served], tmp_path: Path, host: str
) -> None:
    _, here = servers
    url = f"http://{host}:{here.port}/video"
    assert fetched(url, tmp_path) == b"a video"
    assert fetched(f"http://127.0.0.1:{here.port}{to(url)}", tmp_path) == b"a video"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "0x7f000001"])
def test_a_strangers_url_never_leads_to_this_machine(
    servers: tuple[Served, Served], tmp_path: Path, host: str
) -> None:
    _, here = servers
    with (
        pytest.raises(QuarantineError) as caught,
        local_copy(f"http://{host}:{here.port}/video", tmp_path, CONFIG, only_public=True),
    ):
        pass
    assert caught.value.reason == "missing_file"
    if not host.startswith("0x"):  # which not every resolver knows
        assert isinstance(caught.value, PrivateAddressError)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (type(again), again.detail) == (PrivateAddressError, caught.value.detail)
    assert not here.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds tell a machine its secrets
        ("100.64.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", False),  # what a gateway takes for 127.0.0.1
        ("64:ff9b::5db8:d822", True),
    ],
)
def test_addresses_of_the_internet(address: str, public: bool) -> None:
    assert fetch._is_global(address) == public
