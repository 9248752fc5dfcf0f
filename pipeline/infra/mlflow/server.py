"""Where MLflow is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig


def tracking_uri(config: TrackingConfig) -> str:
    """MLFLOW_TRACKING_URI or `tracking.uri`; a relative sqlite file is made absolute, since Ray's
    workers run in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.uri
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        uri = prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


@contextmanager
def current(uri: str) -> Iterator[None]:
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
