"""What a training shows: a bar that moves on a terminal, a line now and then without one."""

from __future__ import annotations

import time
from types import TracebackType

import psutil
import torch

from pipeline.infra.console import brief, console, progress
from vidpipe.training.metrics import EpochMetrics, EpochTiming, StepInfo

LINE_EVERY_S = 60.0


class TrainingDisplay:
    """The display of rank 0: a context manager whose methods are the callbacks of a training."""

    def __init__(self, method: str, epochs: int) -> None:
        self.method, self.epochs = method, epochs
        self.bar = progress()
        self.task = self.bar.add_task(method, total=None, info="")
        self.shown = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def resumed(self, folder: str, step: int) -> None:
        console.print(f"{self.method} goes on after step {step}, from {folder}")

    def warn(self, text: str | None) -> None:
        if text is not None:
            console.print(f"warning: {self.method}: {text}")

    def step(self, info: StepInfo) -> None:
        epoch = f"{self.method} epoch {info.epoch + 1}/{self.epochs}"
        text = step_line(info)
        self.bar.update(
            self.task, description=epoch, completed=info.step, total=info.total_steps, info=text
        )
        if not console.is_terminal and time.monotonic() - self.shown > LINE_EVERY_S:
            self.shown = time.monotonic()
            left = remaining(info)
            console.print(f"{epoch} step {info.step}/{info.total_steps}  {text}  {left}")

    def epoch(self, metrics: EpochMetrics, timing: EpochTiming) -> None:
        self.shown = time.monotonic()
        if brief() and metrics.epoch < self.epochs:
            return
        validated = f"  val top1 {metrics.val_top1:.1%}" if metrics.val_top1 is not None else ""
        if metrics.val_score is not None:
            validated += f"  val score {metrics.val_score:.1%}"
        console.print(
            f"{self.method} epoch {metrics.epoch}/{self.epochs}  loss {metrics.train_loss:.3f}  "
            f"top1 {metrics.train_top1:.1%}{validated}  {timing.clips_per_s:.0f} clips/s"
        )


def step_line(info: StepInfo) -> str:
    return (
        f"loss {info.loss:.3f}  top1 {info.top1:.1%}  lr {info.lr:.1e}  "
        f"{info.clips_per_s:.0f} clips/s  waits {info.data_wait:.0%}  {memory_gb():.1f} GB"
    )


def remaining(info: StepInfo) -> str:
    """Seconds that are left at the pace of this epoch so far."""
    seconds = (info.total_steps - info.step) * info.seconds_per_step
    return f"{seconds / 3600:.1f} h left" if seconds > 5400 else f"{seconds / 60:.0f} min left"


def memory_gb() -> float:
    """GB of memory: the GPU's peak where this process uses one, else what the process has now."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
