"""The demo page's server, without a browser: who may ask for what, and what stays on disk."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tools import demo

HEAD = b"Content-Disposition: form-data; name=files; filename=a.mp4"
EDGE = b"--edge\r\n" + HEAD + b"\r\n\r\nclip\r\n--edge--\r\n"
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a page that takes a file, and the folder of its uploads."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (*demo.ENVIRONMENT.items(), ("GRADIO_TEMP_DIR", str(folder))):
            patch.setenv(name, value)
        gr = pytest.importorskip("gradio")
        with gr.Blocks(analytics_enabled=False) as blocks:
            gr.File()
        with demo.served(blocks, {}, 0, 1) as port:
            yield port, folder


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    connection.request("POST" if body else "GET", path, body, named)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:PORT", 200),
        ("localhost:PORT", 200),
        ("rebound.example:PORT", 403),
        ("127.0.0.1:1", 403),
        ("127.0.0.1", 403),
        ("127.0.0.1:PORT.example", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_it_answers_under_its_own_name_only(
    page: tuple[int, Path], path: str, host: str, status: int
) -> None:
    assert ask(page[0], path, Host=host.replace("PORT", str(page[0]))) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:PORT", 200),
        ("http://localhost:PORT", 200),
        ("http://evil.example", 403),
        ("https://127.0.0.1:PORT", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
    ],
)
def test_another_sites_page_cannot_post_to_it(
    page: tuple[int, Path], origin: str | None, status: int
) -> None:
    port, folder = page
    headers = {} if origin is None else {"Origin": origin.replace("PORT", str(port))}
    assert ask(port, "/gradio_api/upload", EDGE, **FORM, **headers) == status
    assert bool(list(folder.rglob("*.mp4"))) == (status == 200)
    demo.sweep(folder, -1)


def test_an_upload_that_nobody_asks_about_is_deleted(page: tuple[int, Path]) -> None:
    port, folder = page
    assert ask(port, "/gradio_api/upload", EDGE, **FORM) == 200
    (upload,) = folder.rglob("*.mp4")
    demo.sweep(folder, demo.KEPT_S)
    assert upload.exists()
    long_ago = time.time() - demo.KEPT_S - 1
    os.utime(upload, (long_ago, long_ago))
    demo.sweep(folder, demo.KEPT_S)
    assert not [path for path in folder.rglob("*") if path.is_file()]
