"""MLflow, and nothing else here knows it: one run per stage, method and configuration.

A run is found again by its tags, so a rerun writes into the same run, each (metric, step) once.
The driver owns the run; training workers log into it by its id.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Said before MLflow is imported: it would otherwise report usage over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
import torch
from mlflow.entities import Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

import vidpipe
from pipeline.infra.stopping import Interrupted
from vidpipe.errors import VidpipeError
from vidpipe.export.config import ExportConfig
from vidpipe.params import TrackingConfig


def tracking_uri(config: TrackingConfig) -> str:
    """MLFLOW_TRACKING_URI or `tracking.uri`; a relative sqlite file is made absolute, since Ray's
    workers run in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.uri
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        uri = prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


@dataclass
class TrackedRun:
    """An open run. Cheap to rebuild in another process from `uri` and `run_id`."""

    uri: str
    run_id: str

    def __post_init__(self) -> None:
        self.client = MlflowClient(tracking_uri=self.uri)
        self._logged: dict[str, set[int]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        flat = [Param(k, str(v)[:6000]) for k, v in _flatten(values)]
        known = self.client.get_run(self.run_id).data.params
        new = [p for p in flat if p.key not in known]
        for start in range(0, len(new), 100):  # the server's limit of one request
            self.client.log_batch(self.run_id, params=new[start : start + 100])

    def tags(self, values: Mapping[str, Any]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in values.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at `step`, leaving out what this run already has at that step."""
        new = []
        for key, value in values.items():
            if key not in self._logged:
                history = self.client.get_metric_history(self.run_id, key)
                self._logged[key] = {metric.step for metric in history}
            if step not in self._logged[key]:
                self._logged[key].add(step)
                new.append(Metric(key, float(value), int(time.time() * 1000), step))
        if new:
            self.client.log_batch(self.run_id, metrics=new)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """CPU, memory, disk and GPU meanwhile, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it;
        they go on where an earlier process of the same run left off."""
        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def model(
        self,
        package: Path,
        package_hash: str,
        example: NDArray[np.uint8],
        classes: int,
        export: ExportConfig,
        method: str,
        extra_requirements: Sequence[str] = (),
    ) -> str | None:
        """Log the model package as an MLflow model (code and safetensors, no pickle) and register it.

        `example`: uint8 clips (N >= 2, T, 3, H, W); MLflow runs the logged model on it. Returns the
        registered version; an unchanged package is not logged a second time.
        """
        name = f"{export.register_as}-{method}" if export.register_as else None
        tag = "vidpipe.package"
        if self.client.get_run(self.run_id).data.tags.get(tag) == package_hash:
            return self._alias(name, export)
        # MLflow asks for type hints in place of the signature that it has been given.
        warnings.filterwarnings("ignore", message=".*[Tt]ype hint", category=UserWarning)
        with _current(self.uri), mlflow.start_run(run_id=self.run_id):
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={"package": str(package)},
                code_paths=[str(Path(vidpipe.__file__).parent)],
                signature=ModelSignature(
                    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *example.shape[1:]))]),
                    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
                ),
                input_example=example,
                pip_requirements=_requirements(extra_requirements),
                registered_model_name=name,
            )
        # `start_run` as a context marks the run finished; its owner is still at work.
        self.client.update_run(self.run_id, status="RUNNING")
        self.tags({tag: package_hash})
        return self._alias(name, export)

    def _alias(self, name: str | None, export: ExportConfig) -> str | None:
        if name is None:
            return None
        versions = self.client.search_model_versions(f"name = '{name}'")
        own = [int(v.version) for v in versions if v.run_id == self.run_id]
        if not own:
            return None
        version = str(max(own))
        self.client.set_registered_model_alias(name, export.alias, version)
        return version


@contextmanager
def tracked_run(
    config: TrackingConfig, stage: str, method: str, identity: str
) -> Iterator[TrackedRun]:
    """Open (or find again) the run of `stage` and `method` with this identity; close it whatever
    happens: FINISHED, FAILED, or KILLED when interrupted."""
    uri = tracking_uri(config)
    client = MlflowClient(tracking_uri=uri)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(config.experiment)
        )
        tags = {"vidpipe.stage": stage, "vidpipe.method": method, "vidpipe.config_hash": identity}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = client.search_runs([experiment_id], query, max_results=1)
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            name = f"{stage}-{method}-{identity}"
            run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    except MlflowException as error:
        raise VidpipeError(f"MLflow at {uri}: {str(error).splitlines()[0]}") from error
    run = TrackedRun(uri, run_id)
    run.tags(environment())
    try:
        yield run
    except (KeyboardInterrupt, Interrupted):
        client.set_terminated(run_id, "KILLED")
        raise
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


@contextmanager
def _current(uri: str) -> Iterator[None]:
    """MLflow's fluent calls go to `uri`. It puts that into the environment, where a later stage of this
    process, in another folder, would take it for the user's wish."""
    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def download(config: TrackingConfig, run_id: str, folder: str, target: Path) -> Path:
    """Fetch an artifact folder of a run into `target`; returns where it lies."""
    uri = tracking_uri(config)
    try:
        client = MlflowClient(tracking_uri=uri)
        return Path(client.download_artifacts(run_id, folder, str(target)))
    except (MlflowException, OSError) as error:
        line = (str(error).splitlines() or ["no answer"])[0]
        raise VidpipeError(f"MLflow at {uri}: run {run_id} has no {folder}: {line}") from error


def environment() -> dict[str, str]:
    """Machine, versions and the state of the code."""
    facts = {
        "vidpipe.version": vidpipe.__version__,
        "env.python": platform.python_version(),
        "env.torch": torch.__version__,
        "env.platform": platform.platform(),
        "env.cpus": str(os.cpu_count()),
        "env.gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    for key, command in (
        ("git.commit", ["git", "rev-parse", "HEAD"]),
        ("git.dirty", ["git", "status", "--porcelain", "--untracked-files=no"]),
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        facts[key] = str(bool(done.stdout.strip())) if key == "git.dirty" else done.stdout.strip()
    return facts


def _requirements(extra: Sequence[str] = ()) -> list[str]:
    """What serving the model imports, pinned to what it was exported with. torchvision is timm's, and
    has to fit torch."""
    from importlib.metadata import version

    names = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "timm", "torch", "torchvision")
    return [f"{name}=={version(name).split('+')[0]}" for name in (*names, *extra)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
