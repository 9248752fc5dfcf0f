"""Shared fixtures. Models here are random but everywhere non-zero, so that no test passes vacuously."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest
import torch
from hypothesis import settings
from timm.models import VisionTransformer
from torch import nn

SHARED = Path(__file__).parents[2] / "shared"
PROJECT = Path(__file__).parents[1]

# `make test` tries the same examples every time: a change is refused for what it did, not for what a
# draw found elsewhere. `make test-long` draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("fixed")


def tiny_vit(seed: int = 0, **kwargs: object) -> VisionTransformer:
    """3 blocks of width 48, 4 heads, 4 x 4 patches, with LayerScale unless told otherwise."""
    torch.manual_seed(seed)
    options: dict = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 4,
        "num_classes": 0,
        "init_values": 0.5,
    }
    vit = VisionTransformer(**{**options, **kwargs})
    randomise(vit)
    return vit.eval()


def randomise(module: nn.Module, seed: int = 1) -> None:
    """Every parameter non-zero: adapters that start at zero would make most tests pass unread."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


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
