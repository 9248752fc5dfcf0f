"""Shared fixtures. Models here are random but everywhere non-zero, so that no test passes vacuously."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest
from hypothesis import settings

# `make test` tries the same examples every time: a change is refused for what it did, not for what a
# draw found elsewhere. `make test-long` draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("fixed")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_store_is_left_behind() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes to the environment, where the next stage would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
