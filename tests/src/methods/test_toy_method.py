"""CONTRIBUTING's steps, taken: a new method is its options, one file and two lines, and is tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import PROJECT

TOY = '''
"""A trained shift of every frame's feature that depends on time: enough to see the order."""

import torch
from torch import nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import ToyConfig


class Toy(VideoModel):
    name = "toy"
    Config = ToyConfig

    def __init__(self, vit, num_classes, num_frames, config):
        super().__init__(vit, num_classes, num_frames, config)
        taps = config.taps
        self.conv = nn.Conv1d(self.width, self.width, taps, padding=taps // 2, groups=self.width)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.declare(self.conv)

    def classify(self, x, num_frames):
        feature = self.view.pool(x).unflatten(0, (-1, num_frames))
        mixed = self.conv(feature.transpose(1, 2)).transpose(1, 2)
        return self.head(self.head_dropout((feature + torch.tanh(mixed)).mean(1)))
'''


OPTIONS = """
class ToyConfig(MethodConfig):
    taps: int = Field(3, ge=1, le=9)
"""
MATRIX_TESTS = "src/methods/test_methods.py"


def take_the_steps(folder: Path, toy: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(PROJECT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    tests = folder / "tests"
    shutil.copytree(PROJECT / "tests" / "helpers", tests / "helpers")
    for name in ("conftest.py", MATRIX_TESTS):
        shutil.copy(PROJECT / "tests" / name, tests)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    methods = folder / "src" / "vidpipe" / "methods"
    options = (methods / "config.py").read_text()
    options = options.replace("CONFIGS: dict", f"{OPTIONS}\n\nCONFIGS: dict", 1)
    options = options.replace(
        '    "evl": EVLConfig,\n', '    "evl": EVLConfig,\n    "toy": ToyConfig,\n'
    )
    (methods / "config.py").write_text(options)
    (methods / "toy.py").write_text(toy)
    registry = methods / "registry.py"
    lines = registry.read_text()
    lines = lines.replace("        EVL,\n", "        EVL,\n        Toy,\n")
    lines = lines.replace(
        "METHODS: dict", "from vidpipe.methods.toy import Toy\n\nMETHODS: dict", 1
    )
    registry.write_text(lines)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "toy", "tests/test_methods.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_toy_method_is_covered_by_every_parametrised_test(tmp_path: Path) -> None:
    done = take_the_steps(tmp_path, TOY)
    assert done.returncode == 0, done.stdout
    every = (PROJECT / "tests" / MATRIX_TESTS).read_text().count("\n@every\n")
    passed = int(done.stdout.split(" passed")[0].split()[-1])
    assert every >= 11
    assert passed == every - 1  # it cannot be merged, so one test does not apply


@pytest.mark.slow
def test_a_toy_method_that_lies_is_caught(tmp_path: Path) -> None:
    lie = TOY.replace('name = "toy"', 'name = "toy"\n    order_blind = True')
    done = take_the_steps(tmp_path, lie)
    assert done.returncode == 1, done.stdout
    assert "test_sees_the_order_of_frames_or_is_declared_blind" in done.stdout
