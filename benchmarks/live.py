"""`vidpipe predict --live` on a stream with faults: latency, every gap, memory that stays flat.

    python benchmarks/live.py --minutes 10

A camera on the loopback interface (H.264 in MPEG-TS over TCP, 25 frames/s) stutters, leaves holes,
sends noise, hangs up and stays away, in turns of 25 seconds; the command watches it as a process of its
own. Prints the memory of all its processes together as it goes, at the end the percentiles of latency
and what was done beside what was reported. Fails where a gap is missing or the last half adds more than
--allowed MB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from live_camera import Camera, Step
from small_models import backbone_file, save_tiny_package

LINES = 20
TURN = (
    *(Step("play", 7), Step("late", 1.5), Step("play", 5), Step("hole", 1.2), Step("play", 4)),
    *(Step("garbage", 200), Step("play", 3)),
)
LOSSES = ((Step("close"),), (Step("down", 4),), (Step("garbage", 400), Step("close")))


def resident_mb(process: psutil.Process) -> float:
    """Of it and of those that it started. Private to each: shared pages would be counted twice."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--allowed", type=float, default=20, help="MB that the last half may add")
    parser.add_argument("--size", type=int, default=256, help="pixels of the camera's short side")
    given = parser.parse_args()
    done: list[Step] = []

    def steps() -> Iterator[Step]:
        for loss in itertools.cycle(LOSSES):
            for step in (*TURN, *loss):
                done.append(step)
                yield step

    with tempfile.TemporaryDirectory() as folder, Camera(steps(), size=given.size) as camera:
        root = Path(folder)
        package = save_tiny_package(root / "model", backbone_file(root / "vit.safetensors"))
        command = [sys.executable, "-m", "pipeline.cli.app", "predict", "--model", str(package)]
        options = ["--live", camera.url, "--window", "1", "--step", "0.5", "--timeout", "5"]
        running = subprocess.Popen(command + options, stdout=subprocess.PIPE, text=True)
        events: list[dict[str, Any]] = []
        reader = threading.Thread(target=_read, args=(running, events), daemon=True)
        reader.start()
        while not any(e["event"] == "window" for e in events):  # until the model is loaded
            time.sleep(0.5)
        started, seen = time.monotonic(), []
        every = given.minutes * 60 / LINES
        for number in range(1, LINES + 1):
            time.sleep(max(0.0, started + number * every - time.monotonic()))
            seen.append(resident_mb(psutil.Process(running.pid)))
            counts = {k: sum(e["event"] == k for e in events) for k in ("window", "gap", "lost")}
            print(f"{number * every:6.0f} s  {seen[-1]:6.1f} MB  {counts}", flush=True)
        actual = list(done[:-1])
        running.send_signal(signal.SIGINT)
        running.wait(30)
        reader.join(10)
    ended = events[-1]
    print(json.dumps(ended))
    _check(actual, events, seen, given.allowed)


def _read(running: subprocess.Popen[str], events: list[dict[str, Any]]) -> None:
    assert running.stdout is not None
    for line in running.stdout:
        events.append(json.loads(line))


def _check(
    steps: list[Step], events: list[dict[str, Any]], seen: list[float], allowed: float
) -> None:
    made = {act: sum(s.act == act for s in steps) for act in ("late", "hole", "close", "down")}
    gaps = [e for e in events if e["event"] == "gap"]
    pauses = sum(e["attempts"] == 0 for e in gaps)
    losses = sum(e["event"] == "lost" for e in events)
    print(f"made {made}; reported {pauses} pauses, {losses} losses, {len(gaps) - pauses} returns")
    half = seen[len(seen) // 2]
    print(f"memory: {half:.1f} MB after half, {max(seen[len(seen) // 2 :]):.1f} MB at most later")
    faults = []
    if pauses < made["late"] + made["hole"] - 1:
        faults.append("a pause was not reported")
    if losses < made["close"] + made["down"] - 1:
        faults.append("a loss was not reported")
    # A process that is just starting, or gone, makes a sample low; a leak makes the highest ones grow.
    first = max(seen[: len(seen) // 2])
    if max(seen[len(seen) // 2 :]) - first > allowed:
        faults.append(f"memory grew by more than {allowed:g} MB")
    if faults or events[-1]["event"] != "ended":
        sys.exit("; ".join(faults) or "it did not end with a summary")


if __name__ == "__main__":
    main()
