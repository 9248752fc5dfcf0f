"""What a task has to say: how a clip's target is compared with logits, and what is reported of it.

The head stays the method's own linear layer, of one logit a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd  # a package opens without it


@dataclass
class Predictions:
    """Of N clips, C classes, V views."""

    ids: list[str]
    labels: Tensor
    """(N,) class indices; of several labels a clip (N, C), 1 where a clip has the class."""
    probabilities: Tensor
    """(N, C), averaged over the views."""
    view_correct: Tensor
    """(N, V): whether each view alone would be right."""
    orders: dict[str, Tensor] = field(default_factory=dict)
    """Of the middle view: (N, C) for each order of time; empty where it was not asked for."""

    def view_top1(self) -> list[float]:
        """Accuracy of each view alone."""
        return [float(share) for share in self.view_correct.float().mean(0)]


class Task(ABC):
    """One kind of question. B clips, C classes, fp32 logits (B, C).

    A target is what `data.Clips.labels` has of a clip, or what a mixing of pairs made of two.
    """

    name: ClassVar[str]

    @abstractmethod
    def class_weights(self, labels: NDArray[Any], num_classes: int) -> Tensor:
        """(C,) for `train.balance: weights`, from the targets of all N training clips."""

    @abstractmethod
    def loss(
        self, logits: Tensor, target: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
    ) -> Tensor:
        """Mean over the clips. Whatever the split into workers and parts, the mean is the same."""

    @abstractmethod
    def loss_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over the clips, without smoothing or weights: of a validation."""

    @abstractmethod
    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B,) whether the clip counts as right: what a training shows as its accuracy."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> the same shape."""

    @abstractmethod
    def metrics(
        self,
        predictions: Predictions,
        classes: Sequence[str],
        reversed_pairs: Sequence[Sequence[str]] = (),
    ) -> dict[str, float]:
        """All numbers of an evaluation; fractions."""

    @abstractmethod
    def per_class_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a class."""

    @abstractmethod
    def predictions_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a clip."""

    @abstractmethod
    def calibration_table(self, predictions: Predictions) -> pd.DataFrame:
        """Columns confidence, accuracy, clips: one row a bin."""
