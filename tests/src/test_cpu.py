"""What a process asks of the machine. In a process of its own: malloc's settings cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from vidpipe.cpu import use_cpu
if sys.argv[1] == "kept":
    use_cpu(1)
def ten_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24).exp()  # twice 64 MiB: more than malloc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
ten_steps()
print(torch.get_num_threads(), ten_steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is another one")
def test_a_step_finds_the_memory_of_the_one_before() -> None:
    def settled(kind: str) -> list[int]:
        command = [sys.executable, "-c", FAULTS, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    threads, faults = settled("kept")
    assert threads == 1
    assert faults < settled("given back")[1] / 5
