"""The device of the tests of this folder: a CUDA GPU, without which they are skipped.

VIDPIPE_TEST_GPU=cpu runs on the CPU what does not need the device itself, to mend a test where there is
no GPU.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    found = torch.device(os.environ.get("VIDPIPE_TEST_GPU", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    return found


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """For what a CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("needs the GPU itself")
    return device
