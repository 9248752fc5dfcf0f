"""Trainings of `small_project` on frames and on kept features, and what is compared of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from vidpipe.config.overlay import deep_merge, parse_override
from vidpipe.params import Params, parse_params
from vidpipe.training.loop import Trainer
from vidpipe.video.store import FrameStore

FIXED = ("sampling.train_frames=middle", "transform.crop=center")
"""Each clip has one view."""
CPU = torch.device("cpu")


def params_of(root: Path, *sets: str) -> Params:
    raw: Any = yaml.safe_load((root / "params.yaml").read_text())
    for text in sets:
        raw = deep_merge(raw, parse_override(text))
    return parse_params(raw)


def trainer_of(
    root: Path, method: str, *sets: str, store: FrameStore | None = None, **options: Any
) -> Trainer:
    """The trainer of `method` in the project `root`, its frozen features kept where `sets` say so."""
    setup = TrainingSetup.build(params_of(root, *sets), method, Workspace(root), store=store)
    return setup.trainer(CPU, **options)


def trained(trainer: Trainer) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """History and trained weights."""
    history = trainer.run()
    return history, {name: p.detach().clone() for name, p in trainer.trained.items()}


def assert_same_bits(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    for name, tensor in a[1].items():
        assert torch.equal(tensor, b[1][name]), name


def shards_in(root: Path) -> dict[str, bytes]:
    """Every file of the project's features by name."""
    folder = root / "features"
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }
