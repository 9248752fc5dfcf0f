"""Load test of `vidpipe serve` on this machine's loopback.

    python benchmarks/serve_load.py [--requests 1000] [--rounds 200] [--clients 8]

An adapter with random weights on the embedded backbone is served by the command itself; the clips are
those of `vidpipe synth`. Prints requests a second and latencies of the bare model in this process, of
`Classifier.predict` (decoding and model), and of the server with one client and with several; then what
became of `--requests` with every tenth of them garbage, of ten kinds, and the server's memory before and
after. Exits with 1 where a request has no answer, or another status than its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import vidpipe
from pipeline.infra.console import print_table
from pipeline.stages.synth import run as synth
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.video.config import SynthConfig

VIDEO, JSON = {"Content-Type": "video/mp4"}, {"Content-Type": "application/json"}
FULL = 429
TRIES = 1000
"""Times that a client that was sent away comes back."""
Ask = tuple[str, bytes, dict[str, str], int]
"""Path, body and headers of a POST, and the status that is its own."""


def made(root: Path) -> tuple[Path, list[bytes]]:
    """An adapter with random weights, and clips as bytes."""
    config = SynthConfig(pairs=("horizontal",), clips_per_class=8)
    synth(config, root / "clips")
    clips = [path.read_bytes() for path in sorted((root / "clips").rglob("*.mp4"))]
    torch.manual_seed(0)
    model = vidpipe.create_model(
        "st_adapter", ARCHITECTURE, num_classes=2, num_frames=8, weights=WEIGHTS
    )
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    return vidpipe.save(model, root / "adapter", classes=config.classes), clips


def garbage(clip: bytes, limit: int) -> list[Ask]:
    """Ten kinds of what is wrong."""
    path = "/predict"
    return [
        (path, b"not a video", VIDEO, 400),
        (path, b"", VIDEO, 400),
        (path, clip[: len(clip) // 2], VIDEO, 400),
        (path, bytes(limit + 1), VIDEO, 413),
        (path, clip, {"Content-Type": "text/html"}, 415),
        ("/predict/none", clip, VIDEO, 404),
        ("/predict?top=0", clip, VIDEO, 422),
        (path, b"{", JSON, 400),
        (path, b'{"path": "../x"}', JSON, 403),
        (path, b'{"url": "http://127.0.0.1:9/a.mp4"}', JSON, 403),
    ]


def asked(port: int, request: Ask) -> tuple[int, int]:
    """Its status, 0 where there is no answer, and how often it was sent away before."""
    path, body, headers, _ = request
    for away in range(TRIES):
        url = f"http://127.0.0.1:{port}{path}"
        try:
            post = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(post, timeout=300) as answer:
                json.loads(answer.read())
                return answer.status, away
        except urllib.error.HTTPError as error:
            json.loads(error.read())
            if error.code != FULL:
                return error.code, away
            time.sleep(0.05)
        except (OSError, ValueError):
            return 0, away
    return FULL, TRIES


@contextmanager
def server(
    adapter: Path, root: Path, options: Sequence[str]
) -> Iterator[tuple[int, psutil.Process]]:
    """The port of the command's server, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [sys.executable, "-m", "pipeline.cli.app", "serve", str(adapter), "--port", str(port)]
    log = root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*words, *options], stdout=output, stderr=subprocess.STDOUT)
        try:
            while "Ctrl-C" not in log.read_text():
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.2)
            yield port, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def memory_mb(process: psutil.Process) -> dict[str, float]:
    """Resident MB of the replica, of its decoders, and of Serve's proxy."""
    found: Counter[str] = Counter()
    for child in process.children(recursive=True):
        try:
            title, size = " ".join(child.cmdline()), child.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
        if "replica" in title.lower():
            found["replica"] += size
        elif "proxy" in title.lower():
            found["proxy"] += size
        elif "spawn_main" in title:
            found["decoders"] += size
    return dict(found)


def row(name: str, seconds: Sequence[float], wall: float) -> tuple[str, ...]:
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return name, f"{len(seconds)}", f"{len(seconds) / wall:.1f}", f"{p50:.1f}", f"{p99:.1f}"


def timed(
    work: Callable[[Any], Any], inputs: Sequence[Any], workers: int = 1
) -> tuple[list[float], float]:
    """Seconds of each, and of all."""

    def one(value: Any) -> float:
        begun = time.perf_counter()
        work(value)
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        seconds = list(pool.map(one, inputs))
    return seconds, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=1000, help="of which every tenth is garbage"
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="requests of each row of the first table"
    )
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--decoders", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(psutil.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        adapter, clips = made(root)
        files = sorted((root / "clips").rglob("*.mp4"))
        rounds = given.rounds
        rows = []
        with vidpipe.load(adapter, device="cpu") as classifier:
            size = classifier.trained.form.sides
            clip = torch.zeros(classifier.trained.sampling.num_frames, 3, *size, dtype=torch.uint8)
            classifier.predict(files[0])
            rows.append(row("bare model", *timed(classifier.predict, [clip] * rounds)))
            cycled = list(itertools.islice(itertools.cycle(files), rounds))
            rows.append(row("Classifier.predict", *timed(classifier.predict, cycled)))
        limit = 2**20
        options = [
            *("--root", str(root / "clips"), "--allow-urls", "--max-mb", "1"),
            *("--batch-size", str(given.batch_size), "--decoders", str(given.decoders)),
        ]
        with server(adapter, root, options) as (port, process):
            good = [("/predict", clip, VIDEO, 200) for clip in clips]
            for request in itertools.islice(itertools.cycle(good), 20):
                asked(port, request)
            posts = list(itertools.islice(itertools.cycle(good), rounds))
            for clients in (1, given.clients):
                found = timed(lambda request: asked(port, request), posts, clients)
                rows.append(row(f"server, {clients} client(s)", *found))
            header = ("", "requests", "a second", "p50 ms", "p99 ms")
            print_table("clips of vidpipe synth, st_adapter on the embedded ViT", header, rows)
            bad = garbage(clips[0], limit)
            mixed = [
                bad[number // 10 % len(bad)] if number % 10 == 9 else good[number % len(good)]
                for number in range(given.requests)
            ]
            before = memory_mb(process)
            begun = time.perf_counter()
            with ThreadPoolExecutor(4 * given.clients) as pool:
                answers = list(pool.map(lambda request: asked(port, request), mixed))
            wall = time.perf_counter() - begun
            after = memory_mb(process)
        wrong = [
            (request[0], request[3], status)
            for request, (status, _) in zip(mixed, answers, strict=True)
            if status != request[3]
        ]
        counts = Counter(status for status, _ in answers)
        print(f"{len(mixed)} requests of {4 * given.clients} clients in {wall:.1f} s: "
              f"{dict(sorted(counts.items()))}; {len(wrong)} with another status than their own; "
              f"sent away and come back {sum(away for _, away in answers)} times")  # fmt: skip
        for part in before:
            print(f"{part}: {before[part]:.0f} MB before, {after.get(part, 0):.0f} MB after")
        if wrong:
            sys.exit(f"wrong: {wrong[:5]}")


if __name__ == "__main__":
    main()
