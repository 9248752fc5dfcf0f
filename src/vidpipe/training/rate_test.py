"""`lr: auto`: the peak learning rate by a range test (Smith, WACV 2017), a hundred steps or fewer.

The rate rises from step to step until the loss does. A part of the rate at which it has risen is the
peak of the training, which then begins anew from its start. That fits itself to model, width, batch and
data: the papers' rates are for tens of thousands of steps of 64 to 128 clips, and on a few hundred clips
they are up to forty times too low, or, of AIM, close to where it falls apart.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from vidpipe.errors import Diverged
from vidpipe.training.metrics import StepInfo
from vidpipe.training.state import Checkpoints, Progress

STEPS, LOWEST, HIGHEST = 100, 1e-6, 1.0
"""Steps of the test, and the rates between which they lie, evenly on a logarithmic scale."""
START = 20
"""Steps whose losses say what the start's is, and how noisy: at their rates little is learned yet."""
SMOOTH = 0.9
"""Of the running mean of the loss."""
NOISE = 5.0
"""Standard deviations of a running mean, by which it falls or rises beyond noise."""
REGAINED, BEYOND = 0.5, 0.1
"""Once the loss has fallen, it has risen again when this share of the fall is regained, beyond noise: a
model that fell apart guesses, so its loss comes back to the start's and need not go higher. A loss that
has not fallen has to rise by this share of the start's, since by noise it rises a little."""
SAFETY = 0.15
"""Of the rate at which it has risen, where the running mean is some steps late."""


class RateTest:
    """A range test in progress.

    Example:
        >>> test = RateTest()
        >>> while not test.take(2.0 if test.lr < 1e-2 else 9.0):
        ...     pass
        >>> 1e-3 < test.rate < 3e-3
        True
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.mean, self.lowest = 0.0, math.inf
        self.over = False

    @property
    def lr(self) -> float:
        """Of the next step."""
        return float(LOWEST * (HIGHEST / LOWEST) ** (len(self.losses) / (STEPS - 1)))

    def take(self, loss: float) -> bool:
        """The loss of a step at `lr`. Returns whether the test is over."""
        self.losses.append(loss)
        count = len(self.losses)
        if not math.isfinite(loss):
            self.over = True
            return True
        self.mean = SMOOTH * self.mean + (1 - SMOOTH) * loss
        mean = self.mean / (1 - SMOOTH**count)
        if count < START:
            return False
        start = statistics.fmean(self.losses[:START])
        noise = statistics.stdev(self.losses[:START]) * math.sqrt((1 - SMOOTH) / (1 + SMOOTH))
        self.lowest = min(self.lowest, mean)
        fallen = start - self.lowest
        least = REGAINED * fallen if fallen > max(NOISE * noise, 1e-3 * start) else BEYOND * start
        self.over = mean > self.lowest + max(least, NOISE * noise) or count == STEPS
        return self.over

    @property
    def rate(self) -> float:
        """The peak rate that it says, of three digits: a training depends on the number."""
        last = LOWEST * (HIGHEST / LOWEST) ** ((len(self.losses) - 1) / (STEPS - 1))
        return float(f"{SAFETY * last:.3g}")


class Tested(Protocol):
    """What of a Trainer the test needs."""

    progress: Progress
    checkpoints: Checkpoints | None
    ema: Any
    total_steps: int
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    trained: dict[str, nn.Parameter]
    rate_test: RateTest | None

    def steps(self) -> Iterator[StepInfo]: ...


def find_rate(trainer: Tested) -> float:
    """Run the test on `trainer`, which is left as it was; on all workers alike, whose losses are one."""
    kept = trainer.progress, trainer.checkpoints, trainer.ema, trainer.total_steps
    states = copy.deepcopy((trainer.optimizer.state_dict(), trainer.scaler.state_dict()))
    tensors = {name: x.detach().clone() for name, x in trainer.trained.items()}
    trainer.checkpoints = trainer.ema = None
    trainer.progress, trainer.total_steps = Progress(), sys.maxsize
    trainer.rate_test = test = RateTest()
    try:
        while not test.over:
            for info in trainer.steps():
                if test.take(info.loss):
                    break
            done = trainer.progress
            trainer.progress = Progress(step=done.step, epoch=done.epoch + 1)
    except Diverged:
        test.take(math.inf)
    finally:
        trainer.rate_test = None
        trainer.progress, trainer.checkpoints, trainer.ema, trainer.total_steps = kept
        trainer.optimizer.load_state_dict(states[0])
        trainer.scaler.load_state_dict(states[1])
        with torch.no_grad():
            for name, x in tensors.items():
                trainer.trained[name].copy_(x)
        for x in trainer.trained.values():
            x.grad = None
    return test.rate
