"""What a training says of itself, by step and by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vidpipe.data.dataset import Samples
from vidpipe.errors import VidpipeError


def decisive(score: str) -> str:
    """The number of an epoch that trainings of a task with this `Task.score` are compared by."""
    return "val_top1" if score == "top1" else "val_score"


@dataclass
class EpochMetrics:
    """The numbers of one finished epoch, over all workers. Accuracies are fractions, not per cent."""

    epoch: int
    step: int
    train_loss: float
    train_top1: float
    lr: float
    val_loss: float | None
    val_top1: float | None
    grad_norm: float | None = None
    """Mean over the steps, before clipping."""
    val_score: float | None = None
    """The task's own (`Task.score`), such as mAP, where that is not top1."""

    @property
    def decides(self) -> float | None:
        """By what the best epoch is chosen."""
        return self.val_top1 if self.val_score is None else self.val_score

    def numbers(self) -> dict[str, float]:
        """What the table of results holds."""
        skip = ("epoch", "step", "grad_norm")
        return {k: v for k, v in asdict(self).items() if v is not None and k not in skip}

    def curves(self) -> dict[str, float]:
        """What is drawn over the epochs."""
        norm = {} if self.grad_norm is None else {"grad_norm": self.grad_norm}
        return {**self.numbers(), **norm}


@dataclass
class Sums:
    """What is added up over the steps of an epoch, of all workers."""

    loss: float = 0.0
    """Over the clips."""
    correct: float = 0.0
    """Clips whose highest logit was right."""
    clips: float = 0.0
    unreadable: float = 0.0
    """Clips whose place another took."""
    grad_norm: float = 0.0
    """Over the steps whose gradient was finite, before clipping."""
    finite_steps: float = 0.0

    def add(self, other: Sums) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def mean_loss(self) -> float:
        return self.loss / self.clips

    @property
    def top1(self) -> float:
        return self.correct / self.clips

    @property
    def mean_grad_norm(self) -> float | None:
        return self.grad_norm / self.finite_steps if self.finite_steps else None


@dataclass
class EpochTiming:
    """Of what this process did of the epoch."""

    clips_per_s: float
    data_wait: float
    """Fraction of the time spent waiting for the loader."""


@dataclass
class StepInfo:
    """Of one finished step, over all workers; `epoch` counts from 0."""

    epoch: int
    step: int
    total_steps: int
    loss: float
    top1: float
    """Of the epoch so far."""
    lr: float
    grad_norm: float
    seconds_per_step: float
    """Of the epoch so far, as the next two."""
    clips_per_s: float
    data_wait: float
    seconds: float
    """Of this step, with `waited`."""
    waited: float
    """For the loader."""


class BadReads:
    """The clips of one epoch that could not be read, counted where batches arrive: each once,
    whichever loader process met it."""

    def __init__(self, data: Samples, fraction: float, clips: int) -> None:
        self.data, self.clips = data, clips
        self.allowed = max(1, int(fraction * clips))
        self.found = 0
        self.first: list[str] = []

    def count(self, batch: dict[str, Any]) -> int:
        """How many this batch has. Raises as `check` does when this rank's own are too many."""
        replaced = batch["asked"][batch["replaced"]].tolist()
        self.found += len(replaced)
        self.first += [self.data.clips.name(i) for i in replaced[: 4 - len(self.first)]]
        self.check(self.found)
        return len(replaced)

    def check(self, found: int) -> None:
        """Raises VidpipeError when `found` clips, of all ranks, are more than the epoch may have."""
        if found > self.allowed:
            named = f" ({', '.join(self.first)}, ...)" if self.first else ""
            raise VidpipeError(
                f"{found} of an epoch's {self.clips} clips could not be read{named}, more than "
                "train.max_bad_reads allows; run `vidpipe extract` again"
            )
