"""Which device each command computes on, where torch sees a GPU, a cluster has some, or neither."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from small_store import small_project
from trainings import settings
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.infra import training_setup
from pipeline.infra.ray import tasks
from pipeline.infra.ray import train as cluster
from pipeline.infra.ray import tune as trials
from pipeline.stages import evaluate
from pipeline.tools import predict
from vidpipe.device import choose_device
from vidpipe.errors import VidpipeError
from vidpipe.training.loop import Trainer


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says that there is one; whoever computes on it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # MLflow asks for its name and Ray for its number whatever is then computed on.
    for name, answer in (("get_device_name", "a card"), ("current_device", 0), ("set_device", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    health = "_accelerator_graph_capture_health_check"
    monkeypatch.setattr(torch.optim.Optimizer, health, lambda self: None)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def a_cluster(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    have = {"CPU": 8.0, "memory": 64.0 * 2**30} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: have)


def test_this_process_uses_the_gpu_that_torch_sees(a_gpu: None) -> None:
    chosen = [choose_device(use).type for use in ("auto", "yes", "no")]
    assert chosen == ["cuda", "cuda", "cpu"]


def test_without_a_gpu_yes_is_refused(no_gpu: None) -> None:
    assert [choose_device(use).type for use in ("auto", "no")] == ["cpu", "cpu"]
    with pytest.raises(VidpipeError, match="use_gpu: yes, but torch sees no usable GPU"):
        choose_device("yes")
    with pytest.raises(VidpipeError, match="use_gpu: yes, but the Ray cluster has no GPU"):
        choose_device("yes", 0)


@pytest.mark.parametrize("seen_here", [True, False])
@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (2, "cuda")])
def test_workers_use_what_their_cluster_has_whatever_the_driver_sees(
    gpus: int, expected: str, seen_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen_here)
    a_cluster(monkeypatch, gpus)
    config = settings(num_workers=2, memory_gb_per_worker=1)
    with cluster._cluster(config) as device:
        assert device.type == expected
    with trials._ray(config, concurrent=2) as device:
        assert device.type == expected
    with cluster._cluster(config.model_copy(update={"use_gpu": "no"})) as device:
        assert device.type == "cpu"

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks.ray, "remote", lambda holder: holder)
    monkeypatch.setattr(
        tasks._Holder, "options", lambda **options: asked.append(options), raising=False
    )
    monkeypatch.setattr(tasks, "_share_out", lambda *arguments: iter(()))
    list(tasks.run_tasks([], dict, 2, "local", "evaluate", "auto"))
    assert asked[0]["num_gpus"] == (1 if gpus else 0)


def test_a_cluster_with_too_few_gpus_is_not_left_for_its_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_cluster(monkeypatch, 1)
    with (
        pytest.raises(VidpipeError, match="2 workers need 1 CPU, 1 GB and a GPU each"),
        cluster._cluster(settings(num_workers=2, memory_gb_per_worker=1)),
    ):
        pass


def command(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def refused(result: Any) -> str:
    assert isinstance(result.exception, VidpipeError), repr(result.exception)
    return str(result.exception)


def test_yes_without_a_gpu_ends_every_command(in_folder: Path, no_gpu: None) -> None:
    small_project(in_folder, epochs=1, warmup_epochs=0)
    (in_folder / "mlflow.db").unlink()
    words = ("--method", "st_adapter", "--set", "train.use_gpu=yes")
    for name in (("train",), ("train", "--dry-run"), ("evaluate",), ("export",), ("explain",)):
        assert refused(command(*name, *words)).startswith("train.use_gpu: yes, but torch"), name
    assert not (in_folder / "mlflow.db").exists()  # nothing was begun
    params = in_folder / "params.yaml"
    text = params.read_text()
    assert "use_gpu: auto" in text
    params.write_text(text.replace("use_gpu: auto", "use_gpu: yes"))
    with pytest.raises(VidpipeError, match="use_gpu: yes"):
        predict.Job((in_folder / "model",), params=params).open()


def test_no_trains_and_evaluates_on_the_cpu_of_a_gpu_machine(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, a_gpu: None
) -> None:
    small_project(in_folder, epochs=1, warmup_epochs=0, use_gpu="no")
    seen: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(self: Any, *args: Any, **options: Any) -> Any:
            model = getattr(self, "model", None)
            found = original(self, *args, **options)
            seen.append(str(next((model or self.model).parameters()).device))
            return found

        monkeypatch.setattr(owner, name, watched)

    watch(Trainer, "__init__")
    watch(evaluate.Evaluator, "_predict")
    for stage in ("train", "evaluate"):
        done = command(stage, "--method", "linear_probe")
        assert done.exception is None, "".join(traceback.format_exception(*done.exc_info))
    assert len(seen) >= 2
    assert set(seen) == {"cpu"}


def test_a_training_is_deterministic_and_what_follows_it_is_not(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vidpipe run` measures a latency in the process that trained."""
    small_project(in_folder, epochs=1, warmup_epochs=0)
    within: list[tuple[bool, bool]] = []
    forward = Trainer._forward

    def watched(self: Trainer, batch: Any) -> Any:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        within.append((torch.are_deterministic_algorithms_enabled(), warn_only))
        return forward(self, batch)

    monkeypatch.setattr(Trainer, "_forward", watched)
    assert command("train", "--method", "linear_probe").exit_code == 0
    assert within
    assert set(within) == {(True, False)}
    assert not torch.are_deterministic_algorithms_enabled()


def test_auto_trains_on_the_gpu_in_local_mode(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, a_gpu: None
) -> None:
    small_project(in_folder, epochs=1, warmup_epochs=0)
    asked: list[torch.device] = []

    class Found(Exception):
        pass

    def trainer(*args: Any, device: torch.device, **options: Any) -> None:
        asked.append(device)
        raise Found

    monkeypatch.setattr(training_setup, "Trainer", trainer)
    command("train", "--method", "linear_probe")
    assert [device.type for device in asked] == ["cuda"]
