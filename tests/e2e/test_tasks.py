"""Several labels, segments and boxes, from rendered clips to an answer over HTTP, killed on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from project import HELPERS, PROJECT, command

from pipeline.infra.recipes import read_recipe
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.export.programs import PixelModel
from vidpipe.files import read_json
from vidpipe.tasks.base import said
from vidpipe.trained.package import load_package

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]
METHOD = "st_adapter"
TASKS = {
    "multilabel": {"synth": {"clips_per_class": 8}},
    "segments": {"synth": {"clips_per_class": 4}},
    "detection": {"synth": {"clips_per_class": 6}},
}
SMALL: dict[str, Any] = {
    "synth": {"pairs": ["horizontal"], "fps": 8, "size_px": [48, 64]},
    "extract": {"num_workers": 1, "short_side": 48},
    "sampling": {"num_frames": 4, "stride": 2},
    "train": {
        **{"epochs": 2, "warmup_epochs": 0, "eval_every": 1, "batch_size": 4, "threads": 1},
        **{"checkpoint_every": 1, "publish": "best"},
    },
    "evaluate": {"reversed_pairs": []},
    "export": {"formats": ["torch_export", "onnx"], "parity_clips": 2, "max_top1_loss": 1.0},
}
KILLED = """
import sys
from pathlib import Path
from training_victim import arm
arm("step", 4, Path.cwd())
from pipeline.cli.app import main
sys.argv = ["vidpipe", "train", "--method", sys.argv[1]]
main()
"""
"""Dies in the fourth step, after three checkpoints."""


@dataclass
class Trained:
    """Folders of a training that was killed and one that was not, on the same clips."""

    killed: Path
    whole: Path
    died: int
    """Exit code."""
    left: list[str]
    """Its checkpoints when it died."""
    said: str


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp(request.param)
    folder, whole = root / "killed", root / "whole"
    raw = read_yaml(PROJECT / "params.yaml")
    for overlay in (read_recipe(f"demo_{request.param}"), SMALL, TASKS[request.param]):
        raw = deep_merge(raw, overlay)
    raw["backbone"] |= {"weights": str(PROJECT / raw["backbone"]["weights"])}
    for each in (folder, whole):
        each.mkdir()
        (each / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, "synth") == 0
        assert command(patch, "extract") == 0
        path = os.pathsep.join(map(str, (PROJECT / "src", PROJECT, HELPERS)))
        victim = subprocess.run(
            [sys.executable, "-c", KILLED, METHOD],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        left = sorted(p.name for p in folder.glob("ray/*/checkpoints/[0-9]*"))
        assert command(patch, "train", "--method", METHOD) == 0
        (whole / "data").symlink_to(folder / "data")
        patch.chdir(whole)
        assert command(patch, "train", "--method", METHOD) == 0
    return Trained(folder, whole, victim.returncode, left, victim.stderr[-2000:])


def test_killed_and_resumed_has_the_bits_of_one_that_was_not(trained: Trained) -> None:
    assert trained.died == -signal.SIGKILL, trained.said
    assert trained.left[-1].startswith("00000003-"), trained.said
    for name in (f"models/{METHOD}/adapter/adapter.safetensors", f"results/{METHOD}/history.csv"):
        assert (trained.killed / name).read_bytes() == (trained.whole / name).read_bytes(), name
    assert not list((trained.killed / "ray").iterdir())


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.whole)
        assert command(patch, "export", "--method", METHOD) == 0
    return trained.whole


def test_every_program_is_proven(exported: Path) -> None:
    rows = read_json(exported / f"models/{METHOD}/package/parity.json")
    assert [row["format"] for row in rows] == ["safetensors", "torch_export", "onnx"]
    for row in rows:
        assert row["max_abs_difference"] <= row["tolerance"]
        assert row["top1_agreement"] == 1


@contextmanager
def served(model: Any) -> Iterator[str]:
    """The address of MLflow's own scoring server in this process."""
    import uvicorn
    from mlflow.pyfunc import scoring_server

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(scoring_server.init(model), log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(60)


def test_the_registered_model_answers_over_http(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(exported)
    mlflow.set_tracking_uri(f"sqlite:///{exported}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/vidpipe-{METHOD}@candidate")
    package = load_package(exported / f"models/{METHOD}/package")
    shape = (3, package.sampling.num_frames, 3, *package.form.sides)
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {"frames": rng.integers(0, 256, shape, dtype=np.uint8)}
    if "boxes" in package.task.inputs:
        corners = rng.random((3, 2, 2), dtype=np.float32) / 2
        given["boxes"] = np.concatenate([corners, corners + 0.4], 2)
    with torch.inference_mode():
        inputs = [torch.from_numpy(array) for array in given.values()]
        expected = PixelModel(package).probabilities(*inputs)
    records = [{name: given[name][i].tolist() for name in given} for i in range(3)]
    body = json.dumps({"dataframe_records": records, "params": {"top": 100}}).encode()
    with served(model) as address:
        asked = urllib.request.Request(
            f"{address}/invocations", body, {"Content-Type": "application/json"}
        )
        answers = json.load(urllib.request.urlopen(asked, timeout=300))["predictions"]
    for answer, probabilities in zip(answers, expected, strict=True):
        assert answer["reason"] is None
        each = answer["boxes"] or [answer]
        for row, own in zip(each, torch.atleast_2d(probabilities), strict=True):
            wanted = said(own, package.thresholds, 100)
            assert [label["label"] for label in row["labels"]] == [
                package.classes[i] for i in wanted
            ]
            scores = [label["score"] for label in row["labels"]]
            assert scores == pytest.approx(own[wanted].tolist(), abs=1e-5)
    assert np.ptp(expected.numpy(), 0).max() > 1e-6
