"""Frozen features, killed while they are written: what is there stays; the end has the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cached_trainings import FIXED, shards_in, trainer_of
from project import PROJECT
from small_store import small_project

from vidpipe.features import store as feature_store

SETS = (*FIXED, "train.cache_features=exact", "train.batch_size=2", "train.epochs=2")
VICTIM = f"""
import sys, time
from pathlib import Path
sys.path[:0] = {[str(PROJECT / "tests" / "helpers"), str(PROJECT), str(PROJECT / "src")]}
from cached_trainings import trainer_of
from vidpipe.features import fill, store
store.SHARD_ROWS = 2
own = fill.Filler.features
def slowly(self, video, *options):
    print("computing", flush=True)
    time.sleep(float(sys.argv[2]))
    return own(self, video, *options)
fill.Filler.features = slowly
rank, world = (int(word) for word in sys.argv[3:5])
options = dict(rank=rank, world_size=world)
trainer_of(Path(sys.argv[1]), "attentional_pooling", *{SETS!r}, **options)
print("done", flush=True)
"""


def victim(root: Path, seconds: float, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    words = (sys.executable, "-c", VICTIM, str(root), str(seconds), str(rank), str(world))
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    small_project(tmp_path / "a", 11)
    return tmp_path / "a"


def test_after_a_kill_the_rest_is_computed_and_the_bytes_are_the_same(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project, tmp_path / "b")
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 2)
    trainer_of(project, "attentional_pooling", *SETS)
    straight = shards_in(project)
    assert sum(name.endswith(".safetensors") for name in straight) > 5
    killed = tmp_path / "b"
    process = victim(killed, 0.1)
    assert process.stdout is not None
    for _ in range(3):  # into the third shard
        assert process.stdout.readline() == "computing\n"
    time.sleep(random.Random(0).uniform(0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(killed.rglob("*.safetensors")))
    assert 0 < there < len(straight)
    left = next((killed / "features").rglob("batch-2")) / f".{'0' * 24}.abcd1234.safetensors"
    left.write_bytes(b"what a kill left of a shard")
    trainer_of(killed, "attentional_pooling", *SETS)
    left.unlink()
    assert shards_in(killed) == straight


def test_two_workers_fill_one_folder_and_compute_no_shard_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [victim(project, 0.05, rank, 2) for rank in (0, 1)]
    counts = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.endswith("done\n")
        counts.append(out.count("computing"))
    assert sum(counts) == 8 + 3  # of training and validation, one clip at a time
    monkeypatch.setattr(feature_store, "SHARD_ROWS", 2)
    found = shards_in(project)
    (project / "features").rename(project / "together")
    trainer_of(project, "attentional_pooling", *SETS, world_size=2)
    assert shards_in(project) == found
