"""`vidpipe predict --live` as a user runs it: JSON lines, Ctrl-C, a pipe, a slow model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import project
import pytest
import torch
from clips import moving
from live_camera import Camera, Step
from project import HELPERS
from small_models import two_models_and_a_package
from videos import write_video

from pipeline.tools import predict_live
from pipeline.tools.predict import Job
from vidpipe.errors import VidpipeError
from vidpipe.trained.predictor import Predictor

SYSTEM, RTSP_SERVER = "/usr/bin/python3", str(HELPERS / "rtsp_server.py")
BINDINGS = "import gi; gi.require_version('GstRtspServer', '1.0')"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models_and_a_package(tmp_path_factory.mktemp("models"))


def command(models: Path, *more: str) -> list[str]:
    package = str(models / "one" / "package")
    return [sys.executable, "-m", "pipeline.cli.app", "predict", "--model", package, *more]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_ctrl_c_ends_it_with_a_summary(models: Path) -> None:
    steps = [Step("play", 2), Step("garbage", 400), Step("close"), Step("play", 2)]
    with Camera(steps) as camera:
        watched = ["--live", camera.url, "--window", "0.5", "--step", "0.25", "--timeout", "3"]
        running = subprocess.Popen(
            command(models, *watched), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert running.stdout is not None
        seen = []
        for line in running.stdout:
            seen.append(line)
            if '"gap"' in line and '"attempts": 0' not in line:
                break
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=20)
    found = lines("".join(seen) + out)
    events = [each["event"] for each in found]
    assert (events[0], events[-1]) == ("started", "ended")
    assert events.count("lost") == events.count("gap") == 1
    windows = [each for each in found if each["event"] == "window"]
    ended = found[-1]
    assert ended["windows"] == len(windows) >= 4
    assert ended["why"] == "stopped"
    assert ended["p50_ms"] <= ended["p99_ms"] == pytest.approx(max(w["p99_ms"] for w in windows), 1)
    assert windows[0]["labels"][0] in ("left", "right", "up")
    assert all(w["end_s"] - w["start_s"] == pytest.approx(0.52, abs=0.05) for w in windows)
    assert running.returncode == 0
    assert "Traceback" not in errors
    assert errors.strip().count("\n") == 0


@contextmanager
def rtsp_camera(port: str = "0") -> Iterator[str]:
    """GStreamer's RTSP server in a process of its own; its port."""
    with subprocess.Popen([SYSTEM, RTSP_SERVER, port], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.mark.long
@pytest.mark.skipif(
    not Path(SYSTEM).exists()
    or subprocess.run([SYSTEM, "-c", BINDINGS], check=False).returncode != 0,
    reason="GStreamer's RTSP server is not installed",
)
def test_an_rtsp_camera_that_dies_and_comes_back(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, found = threading.Event(), []
    job = Job((models / "one" / "package",), window_s=0.4, step_s=0.2)

    def until(what: Callable[[list[dict[str, Any]]], bool]) -> None:
        deadline = time.monotonic() + 60
        while not what(found):
            assert time.monotonic() < deadline, found[-3:]
            time.sleep(0.1)
            found.extend(lines(capsys.readouterr().out))

    with rtsp_camera() as port:
        live = predict_live.Live(f"rtsp://user:secret@127.0.0.1:{port}/camera", stall_s=2)
        watching = threading.Thread(
            target=predict_live.run, args=(job, live), kwargs={"stop": stop}
        )
        watching.start()
        until(lambda seen: sum(each["event"] == "window" for each in seen) >= 5)
    until(lambda seen: seen[-1]["event"] in ("lost", "retry"))
    before = sum(each["event"] == "window" for each in found)
    with rtsp_camera(port):
        until(lambda seen: sum(each["event"] == "window" for each in seen) >= before + 5)
        stop.set()
        watching.join(30)
    assert not watching.is_alive()
    assert [each["event"] for each in found].count("gap") == 1
    assert "secret" not in json.dumps(found)


def test_a_stream_on_standard_input_ends_with_it(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    film = write_video(tmp_path / "a.ts", moving(60))
    watched = ["--live", "-", "--window", "0.4", "--step", "0.2"]
    kept = os.dup(0)
    try:
        with film.open("rb") as file:
            os.dup2(file.fileno(), 0)
        code = project.command(monkeypatch, *command(models, *watched)[3:])
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    said = capsys.readouterr()
    found = lines(said.out)
    assert code == 0, said.err
    assert found[-1]["why"] == "end"
    assert found[-1]["windows"] >= 1


def test_a_model_slower_than_its_stream_stays_near_now(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, calls, stop = Predictor.__call__, [], threading.Event()

    def slow(self: Predictor, segments: Any) -> Any:
        time.sleep(0.7)
        calls.append(segments)
        if len(calls) == 9:
            stop.set()
        return whole(self, segments)

    monkeypatch.setattr(Predictor, "__call__", slow)
    with Camera([]) as camera:
        job = Job((models / "one" / "package",), window_s=0.4, step_s=0.2)
        predict_live.run(job, predict_live.Live(camera.url), stop=stop)
    found = lines(capsys.readouterr().out)
    latencies = [each["latency_ms"] for each in found if each["event"] == "window"]
    assert len(latencies) == 9
    assert latencies[-1] < 2500, "the model takes 700; eight times 500 would be lost by now"
    assert found[-1]["skipped_windows"] >= 2 * (len(latencies) - 1)


def test_smoothing_averages_the_last_windows_and_forgets_at_a_gap() -> None:
    smoothed = predict_live._Smoothed(2)
    a, b, c = (torch.tensor([x, 1 - x]) for x in (0.0, 0.5, 1.0))
    assert smoothed({"m": a})["m"].tolist() == [0.0, 1.0]
    assert smoothed({"m": b})["m"].tolist() == [0.25, 0.75]
    assert smoothed({"m": c})["m"].tolist() == [0.75, 0.25]
    smoothed.clear()
    assert smoothed({"m": a})["m"].tolist() == [0.0, 1.0]


def test_several_models_have_a_line_each(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = write_video(tmp_path / "a.mp4", moving(25))
    job = Job((models / "one" / "adapter", models / "two"), window_s=0.4)
    predict_live.run(job, predict_live.Live(str(film)), top=1)
    found = [each for each in lines(capsys.readouterr().out) if each["event"] == "window"]
    assert {each["model"] for each in found} == {"one", "two"}
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(VidpipeError, match=r"bad.mp4: not one window .*undecodable"):
        predict_live.run(job, predict_live.Live(str(bad)))
