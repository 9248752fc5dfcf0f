"""What a task has to say: how a clip's target is compared with logits, and what is reported of it.

The head stays the method's own linear layer, of one logit a class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas as pd  # a package opens without it
    import torch

    from vidpipe.methods.base import VideoModel


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
    thresholds: Sequence[float] | None = None
    """(C,) of several labels a clip: the probability from which on the model says the class."""
    clips: Any = None
    """Of what was predicted, such as `tasks.detection.dataset.KeyFrames`: a task may ask it for more."""

    def view_top1(self) -> list[float]:
        """Accuracy of each view alone."""
        return [float(share) for share in self.view_correct.float().mean(0)]


@dataclass(frozen=True)
class LossOptions:
    """What a training does to the loss; by default nothing, as a validation."""

    smoothing: float = 0.0
    weights: Tensor | None = None
    """(C,), of `Task.class_weights`."""
    boxes_per_clip: float = 1.0
    """Of a task with boxes: how many a training clip has on average, so that the mean over clips of sums
    over boxes is the mean over boxes."""
    focal_gamma: float = 0.0
    """Of focal loss (Lin et al. 2017): how much less a class counts that is decided; 0: plain."""


PLAIN = LossOptions()


def more_inputs(batch: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    """What of a batch a network takes beside the clips: of a task with boxes, those."""
    return (batch["boxes"].to(device, non_blocking=True),) if "boxes" in batch else ()


def said(probabilities: Tensor, thresholds: Sequence[float] | None, top: int) -> list[int]:
    """Indices of the classes that a model says of a clip, the likeliest first, at most `top`.

    `probabilities` (C,). With `thresholds` (C,), of several labels a clip, those that reach theirs:
    none, one or more.

    Example:
        >>> import torch
        >>> p = torch.tensor([0.4, 0.9, 0.3])
        >>> said(p, None, 2), said(p, [0.3, 0.5, 0.5], 2), said(p, [1, 1, 1], 2)
        ([1, 0], [1, 0], [])
    """
    best = probabilities.topk(min(top, len(probabilities))).indices.tolist()
    return [i for i in best if thresholds is None or float(probabilities[i]) >= thresholds[i]]


class Task(ABC):
    """One kind of question. B clips, C classes, fp32 logits (B, C).

    A target is what `data.Clips.target` has of a clip, or what a mixing of pairs made of two.
    """

    name: ClassVar[str]
    score: ClassVar[str]
    """The number of `metrics` that stands for a model where there is room for one."""
    score_name: ClassVar[str]
    """As a person reads it."""
    has_thresholds: ClassVar[bool] = False
    """Whether a class is said from a probability on, whatever the others have."""
    inputs: ClassVar[tuple[str, ...]] = ("clips",)
    """Of exported programs. `boxes`: (N, M, 4) x1, y1, x2, y2 as fractions, as many for each clip."""
    output: ClassVar[str]
    """What exported programs give: `logits`, or `probabilities` that are each class's own."""

    def network(self, model: VideoModel) -> nn.Module:
        """What computes the logits, of clips and `more_inputs`: as a rule the model itself."""
        return model

    @abstractmethod
    def class_weights(self, labels: NDArray[Any], num_classes: int) -> Tensor:
        """(C,) for `train.balance: weights`, from the targets of all N training clips."""

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """Mean over the clips. Whatever the split into workers and parts, the mean is the same."""

    @abstractmethod
    def loss_sum(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over the clips of the plain loss: of a validation."""

    @abstractmethod
    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B,) whether the clip counts as right: what a training shows as its accuracy."""

    @abstractmethod
    def chance(self, labels: NDArray[Any], balanced: bool) -> float:
        """The share of N clips that is right without a look at them; `balanced`: classes are drawn
        equally often."""

    @abstractmethod
    def guess(self, num_classes: int) -> float:
        """The loss of a model that knows nothing."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C) logits -> the same shape."""

    def program_output(self, logits: Tensor) -> Tensor:
        """(N, C) logits -> what exported programs give: `output`."""
        return self.probabilities(logits) if self.output == "probabilities" else logits

    @abstractmethod
    def score_of(self, outputs: Tensor, labels: Tensor) -> float:
        """`score` of N clips by their logits or by what programs give of them."""

    def choose_thresholds(self, probabilities: Tensor, labels: Tensor) -> list[float] | None:
        """(C,) from N training clips, both (N, C); None of a task without thresholds."""
        return None

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
        """One row a class, with a column `score` of the task's name."""

    @abstractmethod
    def predictions_table(self, predictions: Predictions, classes: Sequence[str]) -> pd.DataFrame:
        """One row a clip."""

    def rows(self, predictions: Predictions, values: Tensor) -> Tensor:
        """Of `values`, such as its probabilities, those of each row of `predictions_table`."""
        return values

    @abstractmethod
    def calibration_table(self, predictions: Predictions) -> pd.DataFrame:
        """Columns confidence, accuracy, clips: one row a bin."""

    def confusion_matrix(self, predictions: Predictions, classes: Sequence[str]) -> Tensor | None:
        """(C, C) counts, row the label and column the prediction; None where a clip has no single
        label."""
        return None
