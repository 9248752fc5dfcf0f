"""Whether a training's learning rate is wrong, said while it runs: by its loss and accuracy alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from vidpipe.training.metrics import EpochMetrics, StepInfo

SPIKE = 3.0
"""Times the loss of a guess, from which on a step's loss is a spike."""
RISE, LEAST_RISE = 1.5, 0.3
"""Times the lowest loss of an epoch before, and above it: the loss has risen for good."""
PATIENCE = 0.2
"""Of the epochs, after which a training should beat chance; two at least, and one beyond the warm-up."""
SURE = 2.0
"""Standard errors by which chance is to be beaten."""


class RateWatch:
    """Watches one training. `step` and `epoch` return a warning, of each kind once, or None.

    Args:
        rate: gives the peak learning rate, named by `key`, such as `methods.aim.lr`.
        guess, chance: loss of a model that knows nothing, and the accuracy of always guessing the most
            frequent class (`Task.guess`, `Task.chance`).
        clips: of an epoch.
        epochs, warmup: how many there are, and how many of them warm up.
        history: epochs that were trained before, as after a resumption.
    """

    def __init__(
        self,
        key: str,
        rate: Callable[[], float],
        *,
        guess: float,
        chance: float,
        clips: int,
        epochs: int,
        warmup: float = 0.0,
        history: Iterable[EpochMetrics] = (),
    ) -> None:
        self.key, self.rate, self.guess, self.chance = key, rate, guess, chance
        self.clips, self.epochs = clips, epochs
        self.due = max(2, math.ceil(warmup) + 1, math.ceil(PATIENCE * epochs))
        self.lowest = math.inf
        self._said: set[str] = set()
        for metrics in history:
            self.epoch(metrics)

    def step(self, info: StepInfo) -> str | None:
        if info.loss <= SPIKE * self.guess:
            return None
        return self._say(
            "spike",
            f"the loss is {info.loss:.3g} at step {info.step}, where guessing has {self.guess:.3g}: "
            f"{self._rate()} is too high for this model and batch; try a third of it, or set "
            "train.clip_grad_norm",
        )

    def epoch(self, metrics: EpochMetrics) -> str | None:
        lowest, self.lowest = self.lowest, min(self.lowest, metrics.train_loss)
        if metrics.train_loss > max(RISE * lowest, lowest + LEAST_RISE):
            return self._say(
                "rise",
                f"the loss rose from {lowest:.3g} to {metrics.train_loss:.3g} by epoch {metrics.epoch}: "
                f"{self._rate()} is too high; try a third of it, or set train.clip_grad_norm",
            )
        error = math.sqrt(self.chance * (1 - self.chance) / self.clips)
        beaten = metrics.train_top1 > self.chance + SURE * error
        if metrics.epoch < self.due or beaten:
            if beaten:
                self._said.add("chance")  # once it learns, it has learned
            return None
        return self._say(
            "chance",
            f"after {metrics.epoch} of {self.epochs} epochs the training accuracy, "
            f"{metrics.train_top1:.1%}, does not beat chance ({self.chance:.1%}): {self._rate()} may be "
            "too high, or too low where the loss still falls; try a third or three times it, or "
            "`vidpipe tune`",
        )

    def _rate(self) -> str:
        return f"the learning rate {self.rate():.3g} ({self.key})"

    def _say(self, kind: str, text: str) -> str | None:
        if kind in self._said:
            return None
        self._said.add(kind)
        return text
