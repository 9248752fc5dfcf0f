"""A camera of the loopback interface that stutters, stops, sends garbage and comes back, as told."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av
from clips import moving

Act = Literal["play", "late", "hole", "garbage", "close", "down"]


class Step(NamedTuple):
    """play: pictures in real time. late: none, then at once those that were due. hole: none, and the
    stream's time goes on. garbage: so many kilobytes of noise. close: the connection. down: nobody
    answers."""

    act: Act
    seconds: float = 0.0


class _Sink:
    """What FFmpeg's muxer writes to."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def write(self, data: bytes) -> int:
        self.connection.sendall(data)
        return len(data)


class Camera:
    """MPEG-TS (H.264, a key frame every `gop`) to one client at a time, over TCP or HTTP; a context
    manager. After the last step it plays on until it is closed."""

    def __init__(
        self,
        steps: Iterable[Step],
        *,
        http: bool = False,
        fps: int = 25,
        size: int = 48,
        gop: int = 10,
    ) -> None:
        self.steps, self.http, self.fps, self.gop = iter(steps), http, fps, gop
        self.pictures = moving(fps, size, 2 * (size * 2 // 3))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.done = threading.Event()
        self.connections = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"{'http' if self.http else 'tcp'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Camera:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.server.close()
        self.thread.join(10)

    def _serve(self) -> None:
        while not self.done.is_set():
            try:
                self.server.settimeout(0.2)
                connection, _ = self.server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError, av.FFmpegError):  # the client left
                connection.settimeout(30)
                if self.http:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
                self._film(connection)

    def _film(self, connection: socket.socket) -> None:
        with av.open(
            _Sink(connection), "w", format="mpegts", options={"flush_packets": "1"}
        ) as film:
            stream: Any = film.add_stream("libx264", rate=self.fps)
            stream.height, stream.width = self.pictures.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.gop_size = self.gop
            stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
            clock, number = time.monotonic(), 0
            while not self.done.is_set():
                step = next(self.steps, Step("play", 1.0))
                frames = round(step.seconds * self.fps)
                if step.act == "play":
                    for _ in range(frames):
                        clock += 1 / self.fps
                        if self.done.wait(max(0.0, clock - time.monotonic())):
                            return
                        film.mux(stream.encode(self._frame(number)))
                        number += 1
                elif step.act == "late":
                    self.done.wait(step.seconds)
                elif step.act == "hole":
                    self.done.wait(step.seconds)
                    number += frames
                    clock += step.seconds
                elif step.act == "garbage":
                    connection.sendall(random.Random(0).randbytes(int(1000 * step.seconds)))
                elif step.act == "close":
                    return
                elif step.act == "down":
                    self.server.close()
                    connection.close()
                    self.done.wait(step.seconds)
                    self.server = socket.create_server(("127.0.0.1", self.port))
                    return

    def _frame(self, number: int) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(self.pictures[number % self.fps], format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, self.fps)
        return frame
