"""An exponential moving average of the trained weights, which is what is evaluated and published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """`average = d * average + (1 - d) * weights` after each step; frozen weights need none.

    d is `decay`, and less in the first steps (at most (1 + step) / (10 + step), as TensorFlow has
    it): a short training would otherwise publish its initial weights.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.average = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average's weights meanwhile."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(own)

    def copy_to_model(self) -> None:
        """For good."""
        self._copy(self.average)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])
