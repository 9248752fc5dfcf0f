"""Runs in MLflow: one per stage, method and configuration.

A run is found again by its tags, so a rerun writes into the same run, each (metric, step) once.
The driver owns the run; training workers log into it by its id.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.entities import Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray

import vidpipe
from pipeline.infra.mlflow.registered_model import log_model
from pipeline.infra.mlflow.server import tracking_uri
from pipeline.infra.stopping import Interrupted
from vidpipe.errors import VidpipeError
from vidpipe.export.config import ExportConfig
from vidpipe.params import TrackingConfig


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
        """`log_model` of this run."""
        return log_model(
            self.client,
            self.uri,
            self.run_id,
            package,
            package_hash,
            example,
            classes,
            export,
            method,
            extra_requirements,
        )


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


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
