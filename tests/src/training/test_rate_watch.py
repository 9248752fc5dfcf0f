"""When a training says that its rate is wrong, and when it does not; and which rate a batch has."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moving_clips import Moving
from trainings import make

import vidpipe
from vidpipe.config.identity import config_hash, deciding
from vidpipe.methods.config import CONFIGS
from vidpipe.training.metrics import EpochMetrics, StepInfo
from vidpipe.training.optim import make_optimizer
from vidpipe.training.rate_watch import RateWatch

GUESS = math.log(9)


def watch(**more: Any) -> RateWatch:
    options = {"guess": GUESS, "chance": 0.12, "clips": 90, "epochs": 10, "warmup": 1.0, **more}
    return RateWatch("methods.aim.lr", lambda: 1e-3, **options)


def epoch(number: int, loss: float, top1: float) -> EpochMetrics:
    return EpochMetrics(number, 10 * number, loss, top1, 1e-3, None, None)


def step(loss: float) -> StepInfo:
    return StepInfo(0, 3, 100, loss, 0.1, 1e-3, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)


def said(curve: list[tuple[float, float]], **more: Any) -> dict[int, str]:
    """Epoch -> warning."""
    seen = watch(**more)
    found = {i: seen.epoch(epoch(i, *point)) for i, point in enumerate(curve, 1)}
    return {i: text for i, text in found.items() if text is not None}


def test_a_training_that_never_beats_chance_is_told_once() -> None:
    found = said([(GUESS + 0.1, 0.11)] * 10)
    assert list(found) == [2]
    assert found[2].startswith("after 2 of 10 epochs the training accuracy, 11.0%, does not beat")
    assert "the learning rate 0.001 (methods.aim.lr) may be too high" in found[2]
    # A fifth of the epochs, and one beyond the warm-up.
    assert list(said([(GUESS, 0.11)] * 20, epochs=20)) == [4]
    assert list(said([(GUESS, 0.11)] * 10, warmup=4.5)) == [6]


def test_a_training_that_learns_is_left_alone() -> None:
    assert said([(GUESS, 0.11), (2.0, 0.3), (1.4, 0.5), (1.5, 0.45), (0.6, 0.8)]) == {}
    # It learned once; an epoch at chance's edge later on is no news.
    assert said([(2.0, 0.3), (1.9, 0.15)]) == {}
    # With few clips, a little more than chance is chance.
    assert list(said([(2.1, 0.18)] * 3, clips=90)) == [2]
    assert said([(2.1, 0.18)] * 3, clips=900) == {}


def test_a_loss_that_rises_or_jumps() -> None:
    found = said([(1.0, 0.6), (0.5, 0.8), (0.9, 0.7), (2.5, 0.3)])
    assert list(found) == [3]
    assert "the loss rose from 0.5 to 0.9 by epoch 3: the learning rate 0.001" in found[3]
    assert said([(0.02, 0.99), (0.05, 0.99)]) == {}  # a rise that is none
    seen = watch()
    assert seen.step(step(1.5 * GUESS)) is None
    text = seen.step(step(30.0))
    assert text is not None
    assert "the loss is 30 at step 3, where guessing has 2.2" in text
    assert seen.step(step(40.0)) is None


def test_after_a_resumption_it_knows_what_was() -> None:
    seen = watch(history=[epoch(1, GUESS, 0.1), epoch(2, GUESS, 0.1), epoch(3, 1.0, 0.1)])
    assert seen.epoch(epoch(4, 1.0, 0.1)) is None  # it was said
    assert seen.epoch(epoch(5, 2.0, 0.1)) is not None


def test_fit_warns_of_a_rate_that_is_too_high(caplog: pytest.LogCaptureFixture) -> None:
    model = vidpipe.create_model("st_adapter", "vit_still_patch12_48", num_classes=2, num_frames=4)
    with caplog.at_level(logging.WARNING):
        vidpipe.fit(model, Plain(), epochs=4, batch_size=4, lr=0.3, seed=1)
    assert "the learning rate 0.3 (lr)" in caplog.text


class Plain(torch.utils.data.Dataset):
    """As a stranger's data set: (frames, label), by number."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        item = Moving(16, False)[i]
        return item["video"], item["label"]


# -- which rate -----------------------------------------------------------------------------------


@given(st.sampled_from(sorted(CONFIGS)), st.integers(1, 4096))
def test_the_default_rate_is_linear_in_the_batch(name: str, batch: int) -> None:
    config = CONFIGS[name]()
    assert config.lr is None
    assert config.peak_lr(config.base_batch_size) == pytest.approx(config.base_lr)
    assert config.peak_lr(2 * batch) == pytest.approx(2 * config.peak_lr(batch))
    assert CONFIGS[name](lr=1e-3).peak_lr(batch) == 1e-3


def test_the_papers_own() -> None:
    own = {name: (c().base_lr, c().base_batch_size) for name, c in CONFIGS.items()}
    assert own["aim"] == own["zeroi2v"] == (3e-4, 64)
    assert own["st_adapter"] == (5e-4, 128)


def test_the_optimizer_takes_it() -> None:
    from vidpipe.training.config import TrainConfig

    model = make(lr=None, base_lr=0.064, base_batch_size=64)
    config = TrainConfig(epochs=1, batch_size=8, warmup_epochs=0)
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.008)
    assert model.parameter_groups()[0]["lr"] == pytest.approx(0.064)


def test_a_given_rate_has_the_identity_that_it_had() -> None:
    """What base_lr is does not matter then; without a rate, it decides."""
    st_adapter = CONFIGS["st_adapter"]
    given = {
        config_hash(st_adapter(lr=5e-3, base_lr=b, base_batch_size=n)) for b, n in ((1, 2), (3, 4))
    }
    assert given == {config_hash({**_without(st_adapter(lr=5e-3))})}
    assert len({config_hash(st_adapter(base_lr=b)) for b in (1e-3, 2e-3)}) == 2


def _without(config: Any) -> dict[str, Any]:
    return {k: v for k, v in deciding(config).items() if not k.startswith("base_")}
