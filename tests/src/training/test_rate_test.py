"""`lr: auto`: where the range test ends, and that nothing but the rate is left of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainings import make, trainer, weights

from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.training.metrics import EpochTiming
from vidpipe.training.rate_test import HIGHEST, LOWEST, STEPS, RateTest
from vidpipe.training.state import Checkpoints, Progress


def rate_of(loss: Any) -> float:
    test = RateTest()
    while not test.take(loss(test.lr)):
        pass
    return test.rate


@given(st.floats(1e-4, 0.1), st.floats(0.5, 5.0), st.integers(0, 9))
def test_it_is_a_part_of_the_rate_at_which_the_loss_rises(
    cliff: float, start: float, seed: int
) -> None:
    """Noise of a tenth of the loss is no rise; the running mean is a few steps late."""
    noise = torch.rand(2 * STEPS, generator=torch.Generator().manual_seed(seed)).tolist()
    found = rate_of(lambda lr: (5.0 if lr > cliff else 0.95 + 0.1 * noise.pop()) * start)
    assert 0.149 * cliff <= found <= 0.4 * cliff


@given(st.floats(1e-4, 0.1), st.integers(0, 9))
def test_a_model_that_fell_apart_has_but_the_loss_of_a_guess(cliff: float, seed: int) -> None:
    """It falls from 2.1 to 1.9, and beyond the cliff it is 2.15: a guess, and no explosion."""
    noise = torch.rand(2 * STEPS, generator=torch.Generator().manual_seed(seed)).tolist()

    def loss(lr: float) -> float:
        fallen = 2.1 - 0.2 * min(1.0, lr / cliff)
        return (2.15 if lr > cliff else fallen) + 0.1 * noise.pop()

    assert 0.149 * cliff <= rate_of(loss) <= 1.5 * cliff


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it(end: float) -> None:
    found = rate_of(lambda lr: end if lr > 1e-3 else 2.0)
    assert 1.5e-4 <= found <= 1.8e-4


@pytest.mark.parametrize("step", [1, 19, 20, 21])
def test_so_it_does_wherever_it_comes(step: int) -> None:
    test = RateTest()
    assert not any(test.take(2.0) for _ in range(step - 1))
    assert test.take(math.inf)
    assert 0 < test.rate < 1e-5


def test_a_loss_that_never_rises_ends_at_the_highest_rate() -> None:
    test = RateTest()
    assert test.lr == LOWEST
    for _ in range(STEPS - 1):
        assert not test.take(2.0)
    assert test.lr == pytest.approx(HIGHEST)
    assert test.take(2.0)
    assert test.rate == pytest.approx(0.15 * HIGHEST)


@pytest.mark.parametrize("name", ["st_adapter", "linear_probe"])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "accumulate": 2, "patch_drop": 0.5}])
def test_the_training_is_the_one_with_the_found_rate(name: str, options: dict[str, Any]) -> None:
    auto = make(name, lr="auto")
    run = trainer(auto, epochs=2, **options)
    seen: list[float] = []
    run.on_rate = seen.append
    before = {n: x.clone() for n, x in weights(auto).items()}
    history = run.run()
    (found,) = seen
    assert found == run.progress.lr
    assert 1e-5 < found < 0.2
    given_rate = make(name, lr=found)
    assert all(torch.equal(x, weights(given_rate)[n]) for n, x in before.items())
    assert trainer(given_rate, epochs=2, **options).run() == history
    assert all(torch.equal(x, weights(given_rate)[n]) for n, x in weights(auto).items())


def test_one_that_goes_on_keeps_its_rate(tmp_path: Path) -> None:
    whole = make(lr="auto")
    history = trainer(whole, epochs=2).run()
    run = trainer(make(lr="auto"), epochs=2, checkpoints=Checkpoints(tmp_path / "c"))
    run.on_epoch = stop_it
    with pytest.raises(TrainingStopped):
        run.run()
    assert Progress.read(Checkpoints(tmp_path / "c").last()).lr == run.progress.lr
    second = make(lr="auto")
    run = trainer(second, epochs=2, checkpoints=Checkpoints(tmp_path / "c"))
    run.on_rate = lambda lr: pytest.fail("it was found already")
    assert run.run() == history
    assert all(torch.equal(x, weights(second)[n]) for n, x in weights(whole).items())


def stop_it(metrics: Any, timing: EpochTiming) -> None:
    raise TrainingStopped


def test_a_rate_that_is_none_is_one_line() -> None:
    for wrong in (0, -1.0, "high", math.nan):
        with pytest.raises((VidpipeError, ValueError), match="; auto finds one"):
            make(lr=wrong)
