"""Runs in MLflow: one per stage, method and configuration.

A run is found again by its tags, so a rerun writes into the same run, each (metric, step) once.
The driver owns the run; training workers log into it. No outage of MLflow ends what is tracked.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pipeline.infra.console import console
from pipeline.infra.mlflow.registered_model import log_model
from pipeline.infra.mlflow.server import TrackingError, patience, server_at, tracking_uri
from pipeline.infra.stopping import Interrupted
from vidpipe.errors import VidpipeError
from vidpipe.export.config import ExportConfig
from vidpipe.params import TrackingConfig


@dataclass
class TrackedRun:
    """One run in MLflow, found again by its tags or made. Plain values build it in any process.

    Logging never raises: what MLflow does not take is said once, kept, and tried again with whatever
    is logged next and when the run is closed.
    """

    uri: str
    experiment: str
    stage: str
    method: str
    identity: str
    run_id: str | None = None
    """None until MLflow has answered."""

    def __post_init__(self) -> None:
        self.server = server_at(self.uri)
        self._waiting: list[Entry] = []
        self._logged: dict[str, set[int]] = {}

    def params(self, values: Mapping[str, Any]) -> None:
        flat = [Param(k, str(v)[:6000]) for k, v in _flatten(values)]

        def log(client: MlflowClient, run_id: str) -> None:
            known = client.get_run(run_id).data.params
            new = [p for p in flat if p.key not in known]
            for start in range(0, len(new), 100):  # the server's limit of one request
                client.log_batch(run_id, params=new[start : start + 100])

        self._log(Entry(log))

    def tags(self, values: Mapping[str, Any]) -> None:
        tags = [RunTag(k, str(v)) for k, v in values.items()]
        self._log(Entry(lambda client, run_id: client.log_batch(run_id, tags=tags)))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at `step`, leaving out what this run already has at that step."""
        now = int(time.time() * 1000)

        def log(client: MlflowClient, run_id: str) -> None:
            for key in values.keys() - self._logged.keys():
                history = client.get_metric_history(run_id, key)
                self._logged[key] = {metric.step for metric in history}
            new = [key for key in values if step not in self._logged[key]]
            if new:
                metrics = [Metric(key, float(values[key]), now, step) for key in new]
                client.log_batch(run_id, metrics=metrics)
            for key in new:
                self._logged[key].add(step)

        self._log(Entry(log))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, which has to stay where it is until the run is closed."""
        self._log(
            Entry(lambda client, id_: client.log_artifact(id_, str(path), folder), upload=True)
        )

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
        """`log_model` of this run; None where that has to wait."""
        versions: list[str | None] = []

        def log(client: MlflowClient, run_id: str) -> None:
            version = log_model(
                client,
                self.uri,
                run_id,
                package,
                package_hash,
                example,
                classes,
                export,
                method,
                extra_requirements,
            )
            versions.append(version)

        self._log(Entry(log, upload=True))
        return versions[0] if versions else None

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """CPU, memory, disk and GPU meanwhile, where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING asks for it;
        they go on where an earlier process of the same run left off, and end with an outage."""
        if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() or self.run_id is None:
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with patience():
            monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
            monitor.start()
            try:
                yield
            finally:
                monitor.finish()

    def find(self) -> None:
        """Have the run, found or made. Raises TrackingError where MLflow does not do that."""
        self.run_id = self.server.ask(self._found_or_made)

    def close(self, status: str) -> VidpipeError | None:
        """Log what waits, and the end. Returns why part of it is not logged, if so."""
        self._waiting.append(Entry(lambda client, run_id: client.set_terminated(run_id, status)))
        return self._send()

    def _log(self, entry: Entry) -> None:
        self._waiting.append(entry)
        if self.server.worth_trying:
            self._send()

    def _send(self) -> VidpipeError | None:
        waiting, self._waiting = self._waiting, []
        failure: VidpipeError | None = None
        while waiting:
            try:
                self._do(waiting[0])
            except VidpipeError as error:
                failure = error
                self._logged.clear()  # it may have arrived all the same
                self.server.warn(error)
                self._waiting.append(waiting[0])
                if self.run_id is None or not self.server.answers():
                    self._waiting += waiting[1:]
                    return failure
            waiting = waiting[1:]
        if failure is None:
            self.server.all_is_well()
        return failure

    def _do(self, entry: Entry) -> None:
        if self.run_id is None:
            self.find()
        run_id = self.run_id
        assert run_id is not None
        self.server.ask(lambda client: entry.log(client, run_id), entry.upload)

    def _found_or_made(self, client: MlflowClient) -> str:
        experiment_id = _experiment(client, self.experiment)
        tags = {
            "vidpipe.stage": self.stage,
            "vidpipe.method": self.method,
            "vidpipe.config_hash": self.identity,
        }
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = client.search_runs([experiment_id], query, max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            name = f"{self.stage}-{self.method}-{self.identity}"
            run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        return run_id


@dataclass(frozen=True)
class Entry:
    """Something to be logged. Logging it again, should it have arrived, changes nothing."""

    log: Callable[[MlflowClient, str], Any]
    upload: bool = False


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # or another command has made it meanwhile
                raise
    return str(found.experiment_id)


@contextmanager
def tracked_run(
    config: TrackingConfig, stage: str, method: str, identity: str
) -> Iterator[TrackedRun]:
    """Open (or find again) the run of `stage` and `method` with this identity; close it whatever
    happens: FINISHED, FAILED, or KILLED when interrupted.

    Raises VidpipeError where MLflow does not answer at the start, and at the end, after all else is
    done, where it lacks part of the run; with `tracking.required` false, these are warnings.
    """
    run = TrackedRun(tracking_uri(config), config.experiment, stage, method, identity)
    try:
        run.find()
    except TrackingError as error:
        if config.required:
            raise VidpipeError(
                f"{error}; start it, or go on without it by tracking.required=false"
            ) from error
        run.server.warn(error)
    run.tags(environment())
    try:
        yield run
    except (KeyboardInterrupt, Interrupted):
        run.close("KILLED")
        raise
    except BaseException:
        run.close("FAILED")
        raise
    missing = run.close("FINISHED")
    if missing is not None:
        what = f"{missing}; the results of {stage} are written, but MLflow lacks part of this run"
        if config.required:
            raise VidpipeError(f"{what}; run the same command again") from missing
        console.print(f"warning: {what}", markup=False)


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
