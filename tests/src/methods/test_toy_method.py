"""CONTRIBUTING's steps, taken: a new method is its options, one file and two lines, and is tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

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


LIE = """

class Lying(Toy):
    name = "lying"
    order_blind = True
"""
"""A second method, which says of itself what is not true."""
OPTIONS = """
class ToyConfig(MethodConfig):
    taps: int = Field(3, ge=1, le=9)
"""
MATRIX_TESTS = "src/methods/test_methods.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of both methods, in a copy of the project."""
    folder = tmp_path_factory.mktemp("toy")
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
        '    "evl": EVLConfig,\n',
        '    "evl": EVLConfig,\n    "toy": ToyConfig,\n    "lying": ToyConfig,\n',
    )
    (methods / "config.py").write_text(options)
    (methods / "toy.py").write_text(TOY + LIE)
    registry = methods / "registry.py"
    lines = registry.read_text()
    lines = lines.replace("        EVL,\n", "        EVL,\n        Toy,\n        Lying,\n")
    lines = lines.replace(
        "METHODS: dict", "from vidpipe.methods.toy import Lying, Toy\n\nMETHODS: dict", 1
    )
    registry.write_text(lines)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vk", "[toy- or [lying-", "tests/test_methods.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def outcomes(name: str, report: str) -> dict[str, set[str]]:
    """Outcome -> the tests of test_methods.py that had it for a method."""
    found: dict[str, set[str]] = {"PASSED": set(), "FAILED": set(), "SKIPPED": set()}
    for test, outcome in re.findall(rf"::(test_\w+)\[{name}-\d+\] (PASSED|FAILED|SKIPPED)", report):
        found[outcome].add(test)
    return found


@pytest.mark.slow
def test_a_toy_method_is_covered_by_every_parametrised_test(report: str) -> None:
    every = (PROJECT / "tests" / MATRIX_TESTS).read_text().count("\n@every\n")
    assert every >= 11
    toy = outcomes("toy", report)
    assert not toy["FAILED"], report
    assert len(toy["PASSED"]) == every - 1  # it cannot be merged, so one test does not apply
    assert len(toy["SKIPPED"]) == 1


@pytest.mark.slow
def test_a_toy_method_that_lies_is_caught(report: str) -> None:
    assert (
        "test_sees_the_order_of_frames_or_is_declared_blind" in outcomes("lying", report)["FAILED"]
    )
