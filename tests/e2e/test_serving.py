"""The export stage on real clips in every format; its MLflow model served from a clean environment."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import moving
from small_models import here
from small_store import small_project
from videos import write_video

from pipeline.infra.workspace import Workspace
from pipeline.stages import export
from vidpipe.config.overlay import deep_merge
from vidpipe.export.programs import PixelModel
from vidpipe.new_model import new_model
from vidpipe.params import Params, load_params
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.package import load_package

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

METHOD = "zeroi2v"
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
ALL = {"formats": ["torch_export", "onnx"], "precisions": ["fp16", "int8"]}
# Random logits are close together: the loss of accuracy says nothing here, and is only counted.
LENIENT = {"parity_clips": 3, "max_top1_loss": 1.0}


def read_params(root: Path) -> Params:
    return load_params(root / "params.yaml", [deep_merge({"export": ALL}, {"export": LENIENT})])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with clips and an exported model; the current one, since MLflow writes beside it."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("serving")
    here = Path.cwd()
    small_project(root)
    os.chdir(root)
    try:
        params, workspace = read_params(root), Workspace(root)
        torch.manual_seed(0)
        trained = new_model(params, METHOD, ["a", "b"])
        for tensor in trained.model.adapter_state().values():
            tensor += 0.05 * torch.randn_like(tensor)
        save_adapter(workspace.adapter(METHOD), trained, {"epoch": 1})
        export.run(params, METHOD, workspace)
        yield root
    finally:
        os.chdir(here)


def test_every_file_is_proven_on_real_clips(project: Path) -> None:
    package = Workspace(project).package(METHOD)
    rows = json.loads((package / "parity.json").read_text())
    assert [(row["format"], row["dtype"]) for row in rows] == [
        ("safetensors", "fp32"),
        ("torch_export", "fp32"),
        ("torch_export", "fp16"),
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("onnx", "int8"),
    ]
    for row in rows:
        assert (package / row["file"]).is_file()
        if row["dtype"] == "fp32":
            assert row["max_abs_difference"] <= row["tolerance"] == 1e-4
            assert row["top1_agreement"] == 1
        else:
            assert 1e-6 < row["max_abs_difference"] < 0.5  # another arithmetic, the same model
            assert row["accuracy_clips"] == 3
            assert abs(row["top1"] - row["top1_fp32"]) <= 1
    sizes = {row["file"]: (package / row["file"]).stat().st_size for row in rows}
    assert sizes["model.int8.onnx"] < 0.5 * sizes["model.onnx"]
    card = (package / "MODEL_CARD.md").read_text()
    assert "| `model.int8.onnx` | onnx | int8 |" in card
    assert "Clips: 7 train, 3 val." in card


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def bare_environment() -> dict[str, str]:
    """Without what would let this environment's packages in."""
    return {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MLFLOW", "VIRTUAL"))
    }


@contextmanager
def clean_environment(folder: Path, requirements: Path) -> Iterator[Path]:
    """The python of a new virtual environment of `requirements` alone. Six GB: always deleted."""
    beside = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is neither beside python nor on the PATH; `make setup` installs it")
    try:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        python = folder / "bin" / "python"
        done = subprocess.run(
            [uv, "pip", "install", "-q", "--python", python, "-r", requirements],
            capture_output=True,
            text=True,
            env=bare_environment(),
        )
        unreachable = ("dns error", "Could not connect", "error sending request", "timed out")
        if done.returncode and any(sign in done.stderr for sign in unreachable):
            pytest.skip(f"no package index: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr[-2000:]
        yield python
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def served(python: Path, model: Path, log: Path, **config: object) -> Iterator[str]:
    """The address that `mlflow models serve` of that environment answers at."""
    port = free_port()
    command = [python, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-m", str(model), "-p", str(port), "-h", "127.0.0.1"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=bare_environment()
            | {"PATH": path, "SERVING_MODEL_CONFIG": json.dumps(config), **QUIET},
            cwd=model,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"{address}/ping", timeout=5)
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            else:
                pytest.fail(f"no answer in two minutes: {log.read_text()[-3000:]}")
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def registered(project: Path) -> Path:
    """The folder of the registered model."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    (project / "downloaded").mkdir()
    return Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/vidpipe-{METHOD}@candidate",
            dst_path=str(project / "downloaded"),
        )
    )


def ask(address: str, *records: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
    body = json.dumps({"dataframe_records": records, "params": params}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", body, headers)
    answer = json.load(urllib.request.urlopen(request, timeout=120))
    predictions: list[dict[str, Any]] = answer["predictions"]
    return predictions


def test_the_registered_model_is_served_from_its_own_requirements(
    project: Path, registered: Path, tmp_path: Path
) -> None:
    assert not list(registered.rglob("*.pkl"))
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 3, 48, 48), dtype=np.uint8)
    package = load_package(Workspace(project).package(METHOD))
    with torch.no_grad():
        expected = PixelModel(package)(torch.from_numpy(clips)).softmax(-1).numpy()
    video = write_video(tmp_path / "a.mp4", moving(20))
    with (
        clean_environment(tmp_path / "clean", registered / "requirements.txt") as python,
        served(python, registered, tmp_path / "serve.log") as address,
    ):
        command = [python, "-c", "import vidpipe"]
        absent = subprocess.run(command, capture_output=True, env=bare_environment(), cwd=tmp_path)
        assert absent.returncode == 1  # the model brings its code
        rows = [{"frames": clip.tolist()} for clip in clips]
        content = {"bytes": base64.b64encode(video.read_bytes()).decode()}
        *frames, of_bytes, of_path = ask(address, *rows, content, {"path": str(video)})
    for answer, probabilities in zip(frames, expected, strict=True):
        scores = {each["label"]: each["score"] for each in answer["labels"]}
        assert [scores[name] for name in package.classes] == pytest.approx(
            probabilities.tolist(), abs=1e-5
        )
    guesses = here(Workspace(project).package(METHOD)).predict(video)
    assert [each["score"] for each in of_bytes["labels"]] == pytest.approx(
        [guess.probability for guess in guesses], abs=1e-5
    )
    assert of_path["reason"] == "no_root"
    assert not (tmp_path / "clean").exists()


@pytest.mark.long
def test_videos_are_answered_over_http(registered: Path, tmp_path: Path) -> None:
    """By paths and URLs, as whoever serves the model allows; no request allows itself more."""
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", moving(20))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    handler = partial(Quiet, directory=str(tmp_path / "videos"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        url = {"url": f"http://127.0.0.1:{files.server_address[1]}/a.mp4"}
        rows = [{"path": "a.mp4"}, url, {"path": "../serve.log"}, {"bytes": "?"}]
        options = {"root": str(tmp_path / "videos"), "urls": True}
        with served(Path(sys.executable), registered, tmp_path / "serve.log", **options) as address:
            answers = ask(address, *rows, top=1, root="/", private_urls=True)
            (timeline,) = ask(address, rows[0], answer="timeline", window=0.4)
        options["private_urls"] = True
        with served(Path(sys.executable), registered, tmp_path / "serve.log", **options) as address:
            (of_url,) = ask(address, url, top=1)
        files.shutdown()
    reasons = [None, "private_address", "outside_root", "bad_parameter"]
    assert [each["reason"] for each in answers] == reasons
    assert len(answers[0]["labels"]) == 1
    assert of_url["labels"] == answers[0]["labels"]
    assert timeline["timeline"][-1]["end"] == pytest.approx(0.8)
