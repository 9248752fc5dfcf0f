"""MLflow's own server in a child of this process, to be killed and started again at the same port."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from pathlib import Path

import mlflow.server
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from werkzeug.serving import make_server


class TrackingServer:
    """Forked, since MLflow takes seconds to import: it starts in a tenth of a second."""

    def __init__(self, store: Path) -> None:
        self.store = store
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.pid: int | None = None

    def start(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve()
            finally:
                os._exit(1)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.02)

    def _serve(self) -> None:
        SqlAlchemyStore._engine_map.clear()  # connections are not to be shared with the parent
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{self.store}"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(self.store.with_name("artifacts"))
        make_server("127.0.0.1", self.port, mlflow.server.app, threaded=True).serve_forever()

    def kill(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None
