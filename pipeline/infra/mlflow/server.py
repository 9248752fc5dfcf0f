"""Where MLflow is, how long its answer is waited for, and its errors as one line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import mlflow
import mlflow.store.db.utils as database
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipeline.infra.console import console
from pipeline.infra.mlflow import sqlite_store
from vidpipe.errors import VidpipeError
from vidpipe.params import TrackingConfig

Result = TypeVar("Result")

REQUEST_S, RETRIES = 5, 1
"""Of one request, and attempts after the first. MLflow's own 120 s and 7 are four minutes of silence
where nobody listens."""
UPLOAD_S = 60
"""Of a request that carries a file: a server may pass it on before it answers."""
SHARE = 20
"""After a failure that took t seconds, the next attempt is made t * SHARE later: an outage costs a
training a twentieth of its time at most."""


INVALID = "INVALID_PARAMETER_VALUE"
"""MLflow's code for an address that is none."""


class TrackingError(VidpipeError):
    """MLflow did not do what it was asked to; it may later."""


class Server:
    """The tracking server or database at one address, for this process; `server_at` has it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.name = f"MLflow at {_without_password(uri)}"
        self._client: MlflowClient | None = None
        self._next_try = 0.0
        self._warned = False

    @property
    def worth_trying(self) -> bool:
        return time.monotonic() >= self._next_try

    def ask(self, work: Callable[[MlflowClient], Result], upload: bool = False) -> Result:
        """`work(client)`, within `patience`.

        Raises TrackingError when it fails for whatever reason, VidpipeError when the address is none.
        """
        started = time.monotonic()
        try:
            with patience():
                client = self._connected()
                if upload:  # for which a longer wait is in order, but not where nobody is
                    client.search_experiments(max_results=1)
            with patience(UPLOAD_S if upload else REQUEST_S):
                result = work(client)
        except VidpipeError:
            raise
        except Exception as error:  # of MLflow, of its database, or of its store of artifacts
            self._next_try = time.monotonic() + SHARE * (time.monotonic() - started)
            raise TrackingError(f"{self.name}: {_line(error)}") from error
        self._next_try = 0.0
        return result

    def answers(self) -> bool:
        try:
            self.ask(lambda client: client.search_experiments(max_results=1))
        except VidpipeError:
            return False
        return True

    def warn(self, error: VidpipeError) -> None:
        """Say it, once until `all_is_well`."""
        if not self._warned:
            self._warned = True
            console.print(f"warning: {error}; going on, to log it later", markup=False)

    def all_is_well(self) -> None:
        if self._warned:
            self._warned = False
            console.print(f"{self.name} answers again, and has got what it missed", markup=False)

    def _connected(self) -> MlflowClient:
        if self._client is not None:
            return self._client
        attempts, database.MAX_RETRY_COUNT = database.MAX_RETRY_COUNT, 1  # ten of them take 100 s
        try:
            file = sqlite_store.file_of(self.uri)
            if file is not None:
                sqlite_store.prepare(file)
            self._client = MlflowClient(tracking_uri=self.uri)
        except (sqlite_store.NoStore, MlflowException) as error:
            if getattr(error, "error_code", INVALID) != INVALID:
                raise
            source = (
                "MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else "tracking.uri"
            )
            name = _without_password(self.uri)
            raise VidpipeError(f"{source}: {name}: {_line(error)}") from error
        finally:
            database.MAX_RETRY_COUNT = attempts
        return self._client


@cache
def server_at(uri: str) -> Server:
    return Server(uri)


def tracking_uri(config: TrackingConfig) -> str:
    """MLFLOW_TRACKING_URI or `tracking.uri`; a relative sqlite file is made absolute, since Ray's
    workers run in another folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.uri
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        uri = prefix + str(Path(uri.removeprefix(prefix)).resolve())
    return uri


@contextmanager
def patience(seconds: int = REQUEST_S) -> Iterator[None]:
    """MLflow's settings meanwhile. It reads them from the environment for each request; there they must
    not stay, for what this process starts. The user's own values go before these."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(RETRIES),
    }
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    # They print every attempt, and whole tracebacks of what is reported here in a line.
    loggers = [logging.getLogger(name) for name in ("urllib3.connectionpool", database.__name__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: BaseException) -> str:
    """The reason in one line; MLflow's own holds the whole chain of causes."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for known in ("Connection refused", "timed out", "Name or service not known"):
        if known in text:
            return f"{known[0].lower()}{known[1:]}"
    return text if len(text) <= 240 else f"{text[:240]}..."


def _without_password(uri: str) -> str:
    try:
        return make_url(uri).render_as_string(hide_password=True) if "@" in uri else uri
    except ArgumentError:
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
    """Fetch an artifact folder of a run into `target`; returns where it lies.

    Raises VidpipeError where there is none, or no answer.
    """
    server = server_at(tracking_uri(config))
    try:
        return server.ask(
            lambda client: Path(client.download_artifacts(run_id, folder, str(target))), upload=True
        )
    except TrackingError as error:
        raise VidpipeError(f"{folder} of run {run_id}: {error}") from error
