"""Probes trained side by side: the numbers that each has alone, and nothing that one does to another."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from cached_trainings import CPU, FIXED, params_of, trainer_of
from matrix import MATRIX
from small_store import small_project
from tiny import tiny_vit

from pipeline.infra.training_setup import TrainingSetup
from pipeline.infra.workspace import Workspace
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.split import Split
from vidpipe.training.side_by_side import PROBES, SideBySide, refusal

EXACT = (*FIXED, "train.cache_features=exact")
RATES = [(1e-3, 0.0), (3e-2, 0.1), (1.0, 0.5)]
GENTLE = [(1e-4, 0.0), (1e-3, 0.1), (3e-3, 0.5)]
"""Where rounding does not grow."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    small_project(root, epochs=3)
    return root


def together(root: Path, method: str, *sets: str, rates: Any = RATES, **options: Any) -> SideBySide:
    params = params_of(root, *EXACT, *sets)
    base = params.method(method)
    configs = [base.model_copy(update={"lr": lr, "weight_decay": decay}) for lr, decay in rates]
    setup = TrainingSetup.build(params, method, Workspace(root))
    return cast(SideBySide, setup.trainer(CPU, kind=SideBySide, configs=configs, **options))


@pytest.mark.parametrize(
    ("method", "sets"),
    [
        ("linear_probe", ()),
        ("linear_probe", ("train.accumulate=2", "train.clip_grad_norm=0.01")),
        ("linear_probe", ("train.ema_decay=0.9", "train.label_smoothing=0.1", "train.steps=5")),
        ("linear_probe", ("train.balance=weights", "train.lr_schedule=cosine_by_epoch")),
        ("linear_probe", ("train.cache_features={views: 2}", "train.eval_every=2")),
        ("attentional_pooling", ()),
        ("attentive_probe", ("methods.attentive_probe.num_blocks=2",)),
    ],
)
def test_each_has_the_numbers_that_it_has_alone(
    method: str, sets: tuple[str, ...], project: Path
) -> None:
    own = (f"methods.{method}.head_dropout=0.4", *sets)
    seen: list[int] = []
    rates = RATES if method == "linear_probe" else GENTLE
    many = together(project, method, *own, rates=rates)
    many.on_epochs = lambda found: seen.append(len(found[0].history))
    many.run()
    assert seen == list(range(1, many.epochs + 1))
    for k, (lr, decay) in enumerate(rates):
        alone = (f"methods.{method}.lr={lr}", f"methods.{method}.weight_decay={decay}")
        one = trainer_of(project, method, *EXACT, *own, *alone)
        history = one.run()
        assert not many.found[k].error
        for a, b in zip(many.found[k].history, history, strict=True):
            for name, value in vars(b).items():
                expected = None if value is None else pytest.approx(value, rel=2e-3, abs=2e-4)
                assert getattr(a, name) == expected, name
        weights = many.stacked if one.ema is None else many.average
        for name, parameter in one.trained.items():
            if name.endswith("k.bias"):  # cancels in the softmax: its gradient is rounding alone
                continue
            torch.testing.assert_close(weights[name][k], parameter, rtol=5e-3, atol=5e-4)
    assert not torch.allclose(many.stacked["head.weight"][0], many.stacked["head.weight"][2])


def test_one_that_breaks_ends_alone(project: Path) -> None:
    many = together(project, "linear_probe", rates=[(1e-3, 0.0), (1e5, 0.0), (1e-2, 0.0)])
    many.stacked["head.weight"][1] = torch.inf
    many.run()
    good = together(project, "linear_probe", rates=[(1e-3, 0.0), (1e-2, 0.0)])
    good.run()
    assert "is nan at step 0; lower methods.linear_probe.lr" in many.found[1].error
    assert many.found[1].history == []
    assert many.found[0].history[-1].val_loss == pytest.approx(good.found[0].history[-1].val_loss)
    assert len(many.found[2].history) == 3


def test_a_request_ends_all(project: Path) -> None:
    with pytest.raises(TrainingStopped):
        together(project, "linear_probe", stop=lambda: True).run()


@pytest.mark.parametrize(
    ("method", "sets", "message"),
    [
        ("st_adapter", ("methods.st_adapter.blocks=[3]",), "st_adapter trains more than a head"),
        ("partial", (), "partial trains more than a head"),
        ("evl", (), "evl trains more than a head"),
        ("linear_probe", ("train.precision=fp16",), "fp16 scales the loss"),
        ("linear_probe", ("train.cache_features=off",), "side by side goes on kept features"),
    ],
)
def test_what_cannot_go_side_by_side_is_refused(
    method: str, sets: tuple[str, ...], message: str, project: Path
) -> None:
    with pytest.raises(VidpipeError, match=message):
        together(project, method, *sets)


def test_trials_that_differ_otherwise_are_refused(project: Path) -> None:
    params = params_of(project, *EXACT)
    base = params.method("linear_probe")
    setup = TrainingSetup.build(params, "linear_probe", Workspace(project))
    other = base.model_copy(update={"head_dropout": 0.3})
    with pytest.raises(VidpipeError, match="differ in more than base_lr, lr, weight_decay"):
        setup.trainer(CPU, kind=SideBySide, configs=[base, other])


def test_the_probes_are_the_methods_that_can(project: Path) -> None:
    able = set()
    for name, options in MATRIX:
        model = build_method(name, tiny_vit(), 3, 4, METHODS[name].Config.model_validate(options))
        with suppress(VidpipeError):
            if refusal(Split(model), [model.config]) is None:
                able.add(name)
    assert able - {"zero_shot"} == PROBES
