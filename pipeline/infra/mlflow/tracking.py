"""Runs in MLflow: one per stage, method and configuration, below one of the model that they are about.

A run is found again by its tags, so a rerun writes into the same run, each (metric, step) once.
The driver owns the run; training workers log into it. No outage of MLflow ends what is tracked: what
it did not take lies in a file (`journal.py`) until it does.
"""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow.entities import RunTag
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import vidpipe
from pipeline.infra.console import console
from pipeline.infra.mlflow import journal
from pipeline.infra.mlflow.entries import Entry, Sending, flatten, milliseconds, send
from pipeline.infra.mlflow.registered_model import Exported
from pipeline.infra.mlflow.server import TrackingError, patience, server_at, tracking_uri
from pipeline.infra.mlflow.view import view_tag
from pipeline.infra.stopping import Interrupted
from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the UI makes of an experiment: runs and models, no traces."""
MODEL = "model"
"""The stage that the tags of a model's own run name."""


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
    model: str | None = None
    """Identity of the model whose run this one stands below; None: it stands alone."""

    def __post_init__(self) -> None:
        self.server = server_at(self.uri)
        self._waiting: list[Entry] = []
        self._to: Sending | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        self._log("params", values={key: str(value) for key, value in flatten(values)})

    def tags(self, values: Mapping[str, Any]) -> None:
        self._log("tags", values={key: str(value) for key, value in values.items()})

    def metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        *,
        adapter: str | None = None,
        dataset: Mapping[str, Any] | None = None,
    ) -> None:
        """Log numbers at `step`, leaving out what this run already has at that step.

        `adapter`: hash of the logged adapter that they are of; `dataset`: one of `datasets`, on which.
        """
        plain = {key: float(value) for key, value in values.items()}
        on = {key: str(dataset[key]) for key in ("name", "digest")} if dataset else None
        self._log(
            "metrics", values=plain, step=step, at=milliseconds(), adapter=adapter, dataset=on
        )

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, which has to stay where it is until the run is closed."""
        self._log("artifact", path=str(path.absolute()), folder=folder)

    def datasets(self, splits: Sequence[Mapping[str, Any]]) -> None:
        """The data that the run reads: name, digest, split, source and counts of each split."""
        self._log("datasets", splits=[dict(split) for split in splits])

    def adapter(self, folder: Path, digest: str, params: Mapping[str, Any]) -> None:
        """Log an adapter's folder as a model that this run made, which is found again by its hash."""
        plain = {key: str(value) for key, value in flatten(params)}
        name = f"adapter-{self.method}"
        self._log("adapter", folder=str(folder.absolute()), digest=digest, name=name, params=plain)

    def exported(self, given: Exported) -> str | None:
        """`log_model` of this run: the registered version; None where that has to wait."""
        plain = asdict(given) | {"package": str(given.package.absolute())}
        self._log("exported", values=plain)
        return self._to.returned.get("exported") if self._to is not None else None

    def row(
        self,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """What the row of the model has to say, where this run stands below one."""
        self._log(
            "row",
            params={key: str(value) for key, value in flatten(params or {})},
            metrics={key: float(value) for key, value in (metrics or {}).items()},
            tags={key: str(value) for key, value in (tags or {}).items()},
            at=milliseconds(),
        )

    def picture(self, path: Path) -> None:
        """A file for the description of the model's row."""
        self._log("picture", path=str(path.absolute()))

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
        """Log what waits, and the end. Returns why part of it is not logged, if so; it is kept then."""
        self._waiting.append(Entry("status", {"status": status}))
        failure = self._send()
        file = journal.file_of(self.stage, self.method, self.identity)
        if failure is None:
            file.unlink(missing_ok=True)
        else:
            fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
            journal.keep(file, fields, self._waiting)
        return failure

    def resend(self, entries: Sequence[Entry]) -> VidpipeError | None:
        """Log what an earlier process kept; returns why part of it is not logged, if so."""
        self._waiting = list(entries)
        return self._send()

    def _log(self, kind: str, **values: Any) -> None:
        self._waiting.append(Entry(kind, values))
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
                if self._to is not None:
                    self._to.logged.clear()  # it may have arrived all the same
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

        def work(client: MlflowClient) -> None:
            send(entry, self._sending(client))

        self.server.ask(work, entry.upload)

    def _sending(self, client: MlflowClient) -> Sending:
        if self._to is None:
            assert self.run_id is not None
            parent = client.get_run(self.run_id).data.tags.get("mlflow.parentRunId")
            above = str(parent) if parent and self.model is not None else None
            self._to = Sending(client, self.uri, self.run_id, above)
        return self._to

    def _found_or_made(self, client: MlflowClient) -> str:
        experiment = _experiment(client, self.experiment)
        above = {}
        if self.model is not None:
            row = _run(client, experiment, MODEL, self.method, self.model, self.method, {})
            above = {"mlflow.parentRunId": row}
        name = f"{self.stage}-{self.method}-{self.identity}"
        return _run(client, experiment, self.stage, self.method, self.identity, name, above)


def _run(
    client: MlflowClient,
    experiment: str,
    stage: str,
    method: str,
    identity: str,
    name: str,
    more: dict[str, str],
) -> str:
    """The id of the run with these tags, found again and running, or made."""
    tags = {
        "vidpipe.stage": stage,
        "vidpipe.method": method,
        "vidpipe.config_hash": identity,
    }
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], query, max_results=1)
    if not found:
        return str(client.create_run(experiment, tags=tags | more, run_name=name).info.run_id)
    run_id = str(found[0].info.run_id)
    client.update_run(run_id, status="RUNNING")
    if more:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in more.items()])
    return run_id


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags={**KIND, **view_tag()}))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # or another command has made it meanwhile
                raise
    for key, value in view_tag().items():
        if key not in found.tags:  # one that was made before there was a view, or by hand
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


@contextmanager
def tracked_run(
    config: TrackingConfig, stage: str, method: str, identity: str, model: str | None = None
) -> Iterator[TrackedRun]:
    """Open (or find again) the run of `stage` and `method` with this identity; close it whatever
    happens: FINISHED, FAILED, or KILLED when interrupted. `model`: whose run it stands below.

    With `tracking.required`, raises VidpipeError where MLflow does not answer at the start, and at the
    end, after all else is done, where it lacks part of the run; else these are warnings.
    """
    run = TrackedRun(tracking_uri(config), config.experiment, stage, method, identity, model=model)
    try:
        run.find()
    except TrackingError as error:
        if config.required:
            raise VidpipeError(
                f"{error}; start it, or go on without it by tracking.required=false"
            ) from error
        run.server.warn(error)
    run.tags(environment())
    run.row(tags=environment())
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
            raise VidpipeError(f"{what}; `vidpipe sync` sends it") from missing
        console.print(f"warning: {what}; `vidpipe sync` sends it", markup=False)


def environment() -> dict[str, str]:
    """Machine, versions, command and the state of the code, by MLflow's own tags where it has them."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    facts = {
        "vidpipe.version": vidpipe.__version__,
        "env.python": platform.python_version(),
        "env.torch": torch.__version__,
        "env.platform": platform.platform(),
        "env.cpus": str(os.cpu_count()),
        "env.gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "mlflow.source.name": shlex.join(words)[:500],
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    for key, words in (
        ("git.commit", ["rev-parse", "HEAD"]),
        ("git.branch", ["rev-parse", "--abbrev-ref", "HEAD"]),
        ("git.dirty", ["status", "--porcelain", "--untracked-files=no"]),
    ):
        try:
            done = subprocess.run(
                ["git", *words], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            continue
        facts[key] = str(bool(done.stdout.strip())) if key == "git.dirty" else done.stdout.strip()
    for name in ("commit", "branch"):
        if f"git.{name}" in facts:
            facts[f"mlflow.source.git.{name}"] = facts[f"git.{name}"]
    return facts


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return "unknown"
