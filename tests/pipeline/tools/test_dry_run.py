"""`vidpipe train --dry-run` takes the Trainer's own steps: its parts of a batch, its options."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_store import small_project
from torch import nn

from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from pipeline.tools import dry_run
from vidpipe.params import Params, load_params
from vidpipe.training import loop
from vidpipe.training.ema import Ema

STEPS = dry_run.WARM_UP + dry_run.TIMED


def params_of(folder: Path, **train: Any) -> Params:
    # 23 clips, 20 of them for training: a whole batch of 12 and one of 8.
    small_project(folder, 23, batch_size=12, warmup_epochs=0, **train)
    return load_params(folder / "params.yaml", [{"transform": {"mixup_alpha": 0.8}}])


def watch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seen: Counter[str]) -> None:
    original = getattr(owner, name)

    def watched(*args: Any, **options: Any) -> Any:
        seen[name] += 1
        return original(*args, **options)

    monkeypatch.setattr(owner, name, watched)


def test_it_divides_a_batch_as_the_trainer_does(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs that are mixed stay together, so four parts of twelve clips are three of four."""
    params = params_of(in_folder, accumulate=4)
    forward, seen = loop.Trainer._forward, list[int]()

    def watched(self: loop.Trainer, batch: dict[str, Any]) -> Any:
        seen.append(len(batch["label"]))
        return forward(self, batch)

    monkeypatch.setattr(loop.Trainer, "_forward", watched)
    plan = dry_run.plan(params, "linear_probe", Workspace(in_folder))
    by_dry_run, seen[:] = list(seen), []
    assert plan["batch"] == "12 clips a step: 1 x 12 in parts of 4"
    assert by_dry_run == [4, 4, 4, *[2] * 4] * (STEPS // 2)
    assert "activations of 4 clips" in plan["memory"]

    setup = TrainingSetup.build(params, "linear_probe", Workspace(in_folder))
    trainer = setup.trainer(torch.device("cpu"))
    list(trainer.steps())
    assert seen == by_dry_run[: len(seen)]


def test_its_steps_have_all_that_the_trainers_have(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(
        in_folder, precision="fp16", clip_grad_norm=1.0, ema_decay=0.9, compile=True, num_workers=2
    )
    seen = Counter[str]()
    watch(monkeypatch, Ema, "update", seen)
    watch(monkeypatch, nn.utils, "clip_grad_norm_", seen)
    watch(monkeypatch, torch.amp.GradScaler, "step", seen)
    watch(monkeypatch, loop, "validate", seen)

    def compiled(model: nn.Module) -> nn.Module:
        seen["compile"] += 1
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    before = {p: p.read_bytes() for p in in_folder.rglob("*") if p.is_file()}
    plan = dry_run.plan(params, "linear_probe", Workspace(in_folder))
    assert seen == {"update": STEPS, "clip_grad_norm_": STEPS, "step": STEPS, "compile": 1}
    assert plan["batch"] == "12 clips a step: 2 x 6"
    assert {p: p.read_bytes() for p in in_folder.rglob("*") if p.is_file()} == before
