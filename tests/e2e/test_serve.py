"""`vidpipe serve` as a whole: the command, Ray Serve with two replicas, real decoders, real sockets."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import project
import psutil
import pytest
from small_models import two_models_and_a_package
from videos import good_and_bad_videos

import vidpipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("ray.serve")

QUEUE, REPLICAS = 3, 2
VIDEO = {"Content-Type": "video/mp4"}
JSON = {"Content-Type": "application/json"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli.app", "serve", *words]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Server:
    root: Path
    port: int
    process: subprocess.Popen[bytes]

    def ask(
        self,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] = VIDEO,
        method: str | None = None,
    ) -> tuple[int, Any]:
        """Status, and the answer's JSON, which has to be one line."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), JSON
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        if path == "/metrics":
            return status, text
        assert text.endswith("\n"), text
        assert text.count("\n") == 1, text
        return status, json.loads(text)

    def video(self, name: str = "good0") -> bytes:
        return (self.root / "videos" / f"{name}.mp4").read_bytes()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the replicas."""
        text = self.ask("/metrics")[1]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        rows = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for said, value in rows if all(w in said for w in wanted))

    def replicas(self) -> list[psutil.Process]:
        found, titles = [], ("SERVE_REPLICA", "ServeReplica")
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                if any(title in "".join(process.cmdline()) for title in titles):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    two_models_and_a_package(root)
    (root / "videos").mkdir()
    good_and_bad_videos(root / "videos")
    port = free_port()
    models = [str(root / "one" / "adapter"), f"second={root / 'two'}"]
    options = [
        *("--root", str(root), "--port", str(port), "--replicas", str(REPLICAS), "--threads", "1"),
        *("--max-queue", str(QUEUE), "--batch-wait", "50", "--max-mb", "2", "--allow-urls"),
    ]
    log = root / "log"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(*models, *options), stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            if "(Ctrl-C ends it)" in log.read_text():
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"not up in ten minutes: {log.read_text()}")
        yield Server(root, port, process)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        _, alive = psutil.wait_procs(below, 30)
        assert not alive
        said = log.read_text()
        assert "one: st_adapter on vit_tiny_patch16_224, single_label, 3 classes" in said
        assert "shared by several: 20." in said
        assert "Traceback" not in said
        assert "SIGTERM" not in said
    finally:
        if process.poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()


def test_labels_are_the_classifiers(server: Server) -> None:
    for name, folder in (("one", server.root / "one" / "adapter"), ("second", server.root / "two")):
        with vidpipe.load(folder, device="cpu") as classifier:
            for video in ("good0", "good1", "good2"):
                expected = classifier.predict(server.root / "videos" / f"{video}.mp4", top=2)
                status, said = server.ask(f"/predict/{name}?top=2", server.video(video))
                assert status == 200
                found = [(each["label"], each["score"]) for each in said["labels"]]
                assert [label for label, _ in found] == [guess.label for guess in expected]
                scores = [guess.probability for guess in expected]
                assert [score for _, score in found] == pytest.approx(scores, abs=1e-5)


def test_the_backbone_is_in_memory_once(server: Server) -> None:
    _, report = server.ask("/models")
    assert {m["name"]: m["shares_backbone"] for m in report["models"]} == {"one": 0, "second": 0}
    memory = report["memory_mb"]
    assert memory["shared"] > 20
    assert memory["apart"] == pytest.approx(memory["total"] + memory["shared"], abs=0.01)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not a video", 400),
        (b"", 400),
        (bytes(2**21 + 1), 413),
        (bytes(20 * 2**20), 413),
        ({"path": "../x"}, 403),
        ({"path": "link.mp4"}, 403),
        ({"path": "absent.mp4"}, 404),
        ({"path": "videos/cut.mp4"}, 400),
        ({"url": "http://127.0.0.1:9/a.mp4"}, 403),
        ({"url": "file:///etc/passwd"}, 422),
        ({"path": "videos/good0.mp4", "tpo": 1}, 422),
        ({"path": "videos/good0.mp4"}, 200),
    ],
)
def test_requests_of_every_kind_have_their_status(server: Server, body: Any, status: int) -> None:
    link = server.root / "link.mp4"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    assert server.ask("/predict/one", body)[0] == status


def test_wrong_kinds_and_names_have_their_status(server: Server) -> None:
    assert server.ask("/predict/none", server.video())[0] == 404
    assert server.ask("/predict/one", b"a", {"Content-Type": "text/html"})[0] == 415
    assert server.ask("/predict/one?top=0", server.video())[0] == 422
    assert server.ask("/models", headers={"Host": "rebound.example"})[0] == 403


def test_who_comes_when_it_is_full_is_sent_away_and_nobody_is_lost(server: Server) -> None:
    items = server.metric("vidpipe_items_total")
    good = server.video()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: server.ask("/predict/one", good), range(120)))
    found = Counter(status for status, _ in answers)
    assert set(found) == {200, 429}, found
    labels = {json.dumps(said["labels"][0]["label"]) for status, said in answers if status == 200}
    assert len(labels) == 1
    assert {said["reason"] for status, said in answers if status == 429} == {"full"}
    assert server.metric("vidpipe_in_flight") == 0
    assert server.metric("vidpipe_most_in_flight") <= REPLICAS * QUEUE
    assert server.metric("vidpipe_items_total") - items == found[200]


def test_what_waits_together_goes_through_the_model_together(server: Server) -> None:
    before = [server.metric(f"vidpipe_{name}_total") for name in ("items", "batches")]
    path = "/predict/one?answer=timeline&window=0.2&step=0.04"
    status, said = server.ask(path, server.video("good2"))
    assert status == 200
    assert said["timeline"][0]["start"] == 0
    assert said["timeline"][-1]["end"] == pytest.approx(said["seconds"])
    after = [server.metric(f"vidpipe_{name}_total") for name in ("items", "batches")]
    items, batches = (b - a for a, b in zip(before, after, strict=True))
    assert items > 30
    assert batches < items / 2


def test_a_client_that_goes_away_leaves_its_place(server: Server) -> None:
    for _ in range(2 * QUEUE * REPLICAS):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.putrequest("POST", "/predict/one")
        connection.putheader("Content-Type", "video/mp4")
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(server.video()[:1000])
        connection.close()
    for _ in range(60):
        if server.metric("vidpipe_in_flight") == 0:
            break
        time.sleep(0.5)
    assert server.metric("vidpipe_in_flight") == 0
    assert server.ask("/predict/one", server.video())[0] == 200


def test_models_come_and_go_under_load(server: Server) -> None:
    """Of both replicas; requests to another model are answered all the while."""
    stop = threading.Event()
    found: Counter[int] = Counter()

    def requests() -> None:
        while not stop.is_set():
            found[server.ask("/predict/one", server.video())[0]] += 1

    thread = threading.Thread(target=requests)
    thread.start()
    try:
        status, said = server.ask("/admin/models", {"path": "two", "name": "third"})
        assert status == 201, said
        assert {server.ask("/predict/third", server.video())[0] for _ in range(10)} == {200}
        assert server.metric("vidpipe_models") == 3 * REPLICAS
        assert server.ask("/admin/models", {"path": "../x"})[0] == 403
        assert server.ask("/admin/models", {"path": "videos"})[0] == 422
        assert server.metric("vidpipe_models") == 3 * REPLICAS
        assert server.ask("/admin/models/third", method="DELETE")[0] == 200
        assert {server.ask("/predict/third", server.video())[0] for _ in range(10)} == {404}
    finally:
        stop.set()
        thread.join()
    assert set(found) == {200}


@pytest.mark.long
def test_a_replica_that_dies_comes_back_with_the_models_of_the_day(server: Server) -> None:
    assert server.ask("/admin/models", {"path": "one/package", "name": "late"})[0] == 201
    assert server.ask("/admin/models/second", method="DELETE")[0] == 200
    before = {each.pid for each in server.replicas()}
    assert len(before) == REPLICAS
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 400
    while min(before) in (now := {each.pid for each in server.replicas()}) or len(now) < REPLICAS:
        assert time.monotonic() < deadline, now
        time.sleep(0.5)
    while server.metric("vidpipe_models") < 2 * REPLICAS:  # the new one is asked, too
        assert time.monotonic() < deadline, server.ask("/metrics")
        time.sleep(0.5)
    for _ in range(20):
        assert server.ask("/predict/late", server.video())[0] == 200
        assert server.ask("/predict/second", server.video())[0] == 404


def test_a_taken_port_is_said_in_a_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("serve", str(server.root / "two"), "--port", str(server.port))
    assert project.command(monkeypatch, *words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith(
        f"vidpipe: --host 127.0.0.1, --port {server.port}: Address already in use"
    )
