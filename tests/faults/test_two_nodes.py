"""A cluster of two Ray nodes on one machine, one of which is killed in the middle of the work.

The nodes are real (a raylet, workers and an object store each) and have one CPU each. What Ray writes
lies in a folder of its own, so that no other Ray on this machine is met.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import moving
from extraction import SMALL, digest
from project import HELPERS
from small_store import small_project
from videos import write_video

from pipeline.stages import extract
from vidpipe.data.config import DataConfig
from vidpipe.video.config import ExtractConfig
from vidpipe.video.extract import Extracted, extract_one

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class TwoNodes:
    """A head and a second node; the second can be killed and another one added."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.cluster.add_node(num_cpus=1, include_dashboard=False)
        self.second = self.cluster.add_node(num_cpus=1)
        self.address = str(self.cluster.address)

    def kill(self) -> None:
        """SIGKILL the second node's raylet, as when its machine is gone; its workers die with it."""
        raylet = self.second.all_processes["raylet"][0].process
        os.kill(raylet.pid, signal.SIGKILL)
        raylet.wait()

    def add(self) -> None:
        self.second = self.cluster.add_node(num_cpus=1)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    folder = tempfile.mkdtemp(prefix="vp", dir="/tmp")  # sockets allow a path of 107 letters
    monkeypatch.setenv("RAY_TMPDIR", folder)
    path = os.pathsep.join(p for p in (str(HELPERS), os.environ.get("PYTHONPATH")) if p)
    monkeypatch.setenv("PYTHONPATH", path)
    found = TwoNodes()
    try:
        yield found
    finally:
        import ray

        ray.shutdown()
        found.cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


# -- training -------------------------------------------------------------------------------------

TRAIN = ("train", "--method", "st_adapter")


def train(
    folder: Path, address: str, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str]:
    """`vidpipe train` on the cluster: exit status and standard error, given to `on_line` as it comes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.app", *TRAIN],
        cwd=folder,
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    watchdog = threading.Timer(800, process.kill)
    watchdog.start()
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        on_line(line)
    watchdog.cancel()
    return process.wait(), "".join(lines)


def test_training_survives_the_death_of_a_node_in_mid_epoch(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    """A node comes back: the same world size, so the same bits as a run that nothing disturbed."""
    results = {}
    died_at: list[int] = []

    def kill_once(line: str) -> None:
        found = re.search(r"epoch (\d)/4", line)
        if found and found.group(1) == "2" and not died_at:
            died_at.append(int(found.group(1)))
            time.sleep(0.5)  # into the third epoch, which takes seconds
            nodes.kill()
            nodes.add()

    for name, on_line in (("whole", lambda line: None), ("killed", kill_once)):
        folder = tmp_path / name
        folder.mkdir()
        small_project(folder, clips=163, num_workers=2)
        status, err = train(folder, nodes.address, on_line)
        assert status == 0, err[-3000:]
        results[name] = (
            (folder / "models" / "st_adapter" / "adapter")
            .joinpath("adapter.safetensors")
            .read_bytes(),
            (folder / "results" / "st_adapter" / "history.csv").read_bytes(),
        )
    assert died_at == [2]
    assert results["killed"] == results["whole"]


# -- extraction -----------------------------------------------------------------------------------


def slowly(source: Path, config: ExtractConfig) -> Extracted:
    """So that the node dies while both have work."""
    time.sleep(0.3)
    return extract_one(source, config)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    import numpy as np

    root = tmp_path_factory.mktemp("videos")
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(12):
            write_video(root / label / f"{i}.mp4", np.roll(moving(30), 5 * i + (label == "b"), 2))
    return DataConfig(root=str(root), val_fraction=0.4)


@pytest.mark.parametrize("comes_back", [True, False], ids=["comes_back", "stays_away"])
def test_extraction_survives_the_death_of_a_node(
    nodes: TwoNodes,
    videos: DataConfig,
    tmp_path: Path,
    comes_back: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vidpipe.video.writer import StoreWriter

    expected = extract.run(videos, SMALL, tmp_path / "here")
    assert expected["clips"] == 24
    added: list[int] = []
    add = StoreWriter.add

    def add_and_kill(self: StoreWriter, index: int, clip: Any) -> None:
        add(self, index, clip)
        added.append(index)
        if len(added) == 6:
            nodes.kill()
            if comes_back:
                nodes.add()

    monkeypatch.setattr(StoreWriter, "add", add_and_kill)
    config = SMALL.model_copy(update={"ray_address": nodes.address, "num_workers": 2})
    found = extract.run(videos, config, tmp_path / "there", work=slowly)
    assert found == expected
    assert sorted(added) == sorted(set(added)), "nothing is written twice"
    assert digest(tmp_path / "there") == digest(tmp_path / "here")
