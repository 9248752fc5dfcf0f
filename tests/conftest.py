"""Shared fixtures. Models here are random but everywhere non-zero, so that no test passes vacuously."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes beside each server
# Ray's workers are of niceness 15 otherwise: beside another process's tests they stand still.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a processor each: threads of two processes wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell without job control, as CI's, starts us with SIGINT ignored: Ctrl-C would be untested then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

# `make test` tries the same examples every time: a change is refused for what it did, not for what a
# draw found elsewhere. `make test-long` draws new ones.
settings.register_profile("fixed", max_examples=50, derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """A Ray of two processors for all tests of this process that ask for it: each start takes 15 s and
    more. What the project itself starts as `local` is this one, then."""
    import ray
    from project import HELPERS

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HELPERS), before))
    )  # of its workers
    try:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: with one of them at the end, a process would wait for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    e2e = {item.path for item in items if item.path.parent.name == "e2e"}
    items.sort(key=lambda item: (item.path not in e2e, item.path not in slow))


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _ctrl_c_is_given_back() -> Iterator[None]:
    """A library that keeps its own handler of Ctrl-C would take it from whatever runs next."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after is before


@pytest.fixture(autouse=True)
def _no_store_is_left_behind() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes to the environment, where the next stage would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
