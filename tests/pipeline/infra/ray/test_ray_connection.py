"""A Ray that is not where it is said to be: one line, within seconds, for whoever asks for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from trainings import settings

from pipeline.infra.ray import connection, tune
from pipeline.infra.ray import train as cluster
from pipeline.infra.ray.tasks import run_tasks, stream
from vidpipe.errors import VidpipeError

NOBODY = "127.0.0.1:9"


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """The address of somebody who says `answer` to whatever is asked; None: nothing, ever."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(4)

        def serve() -> None:
            try:
                with server.accept()[0] as asked:
                    asked.recv(100)
                    asked.sendall(answer or b"")
            except OSError:
                return

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def no_init(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ray's own attempts, which would take minutes. No Ray runs here, whatever other files started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    made: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda *args, **options: made.append(args))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return made


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "no answer within 0.2 s"),
        (b"", "something else answers there"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "something else answers there"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_who_does_not_speak_as_ray_does_is_not_waited_for(
    answer: bytes | None, message: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = no_init(monkeypatch)
    monkeypatch.setattr(connection, "ANSWER_S", 0.2)
    with (
        listening(answer) as address,
        pytest.raises(VidpipeError, match=rf"^--ray: the Ray at {scheme}{address}: {message}$"),
        connection.joined(scheme + address, "--ray"),
    ):
        pytest.fail("there is no Ray")
    assert not made


@pytest.mark.parametrize("address", ["local", "auto", "[::1]:x", None])
def test_what_is_no_host_and_port_is_for_ray_to_judge(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = no_init(monkeypatch)
    with listening(bytes([0, 0, 0, 4, 0])) as ray_there:
        expected = address or ray_there
        with connection.joined(expected, "--ray"):
            pass
    assert made == [(expected,)]


def on_tasks(folder: Path) -> None:
    list(run_tasks([1], lambda: lambda task: task, 1, NOBODY, "extract"))


def on_predict(folder: Path) -> None:
    list(stream(["a.mp4"], lambda: lambda inputs: iter(()), None, 1, NOBODY, False))


def on_train(folder: Path) -> None:
    config = settings(num_workers=2, memory_gb_per_worker=0.1)
    cluster.train(lambda payload: None, {}, config, folder)


def on_tune(folder: Path) -> None:
    tune.run_trials(folder, {}, {}, tune.Search(), settings(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("use", "source"),
    [
        (on_tasks, "extract.ray_address"),
        (on_predict, "--ray"),
        (on_train, "RAY_ADDRESS"),
        (on_tune, "RAY_ADDRESS"),
    ],
)
def test_everything_that_works_on_ray_says_in_a_line_that_nobody_is_there(
    use: Callable[[Path], None], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_init(monkeypatch)
    if source == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    else:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(VidpipeError, match=f"^{source}: the Ray at {NOBODY}: connection refused$"):
        use(tmp_path)
