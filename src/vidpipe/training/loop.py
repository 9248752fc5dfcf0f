"""Fine-tuning the trained parameters of a frozen model: a plain loop over epochs and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.config import TrainConfig
from vidpipe.data.batches import EpochBatches
from vidpipe.data.dataset import TrainSet, ViewSet, to_input, train_loader, view_loader
from vidpipe.data.mixing import PairMixer
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel


@dataclass
class EpochMetrics:
    """Of one finished epoch, over all workers. Fractions, not per cent."""

    epoch: int
    step: int
    train_loss: float
    train_top1: float
    lr: float
    val_loss: float | None
    val_top1: float | None

    def numbers(self) -> dict[str, float]:
        skip = ("epoch", "step")
        return {k: v for k, v in asdict(self).items() if v is not None and k not in skip}


@dataclass
class EpochTiming:
    clips_per_s: float
    data_wait: float
    """Fraction of the epoch spent waiting for the loader."""


@dataclass
class StepInfo:
    epoch: int
    step: int
    total_steps: int
    loss: float
    top1: float
    clips_per_s: float


def fit(
    model: VideoModel,
    train_set: TrainSet,
    val_set: ViewSet,
    config: TrainConfig,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    mixer: PairMixer | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    on_step: Callable[[StepInfo], None] = lambda info: None,
    on_epoch: Callable[[EpochMetrics, EpochTiming], None] = lambda metrics, timing: None,
) -> list[EpochMetrics]:
    """Train `model` in place; AdamW, linear warm-up, cosine to zero (all three papers).

    `wrap` adds data parallelism; callbacks run on every rank, after every step and epoch.
    `mixer` mixes pairs of clips; the training accuracy then counts their heavier labels.
    Raises VidpipeError when the loss is not finite, naming the step and the clips, and when an epoch
    had more unreadable clips than `train.max_bad_reads` allows.
    """
    device = device or torch.device("cpu")
    model.to(device)
    parallel = wrap(model)
    batches = EpochBatches(
        len(train_set),
        config.batch_size,
        config.seed,
        rank,
        world_size,
        shards=train_set.clips.shards if config.shuffle == "shards" else None,
        pairs=mixer is not None,
    )
    loader = train_loader(train_set, batches, config.loader_workers, config.prefetch)
    total_steps = config.epochs * len(batches)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=model.config.lr, fused=True)
    warmup = config.warmup_epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, warmup, total_steps)
    )
    history = []
    step = 0
    # Dropout must not depend on what ran before in this process (local mode shares it).
    torch.manual_seed(config.seed + rank)
    for epoch in range(config.epochs):
        parallel.train()
        batches.epoch = epoch
        sums = torch.zeros(4, dtype=torch.float64)  # loss, correct, clips, unreadable clips
        bad = BadReads(train_set, config.max_bad_reads, len(batches) * batches.batch_size)
        started = waited = time.perf_counter()
        waiting = 0.0
        for batch in loader:
            waiting += time.perf_counter() - waited
            bad.count(batch)
            x = to_input(batch["video"].to(device, non_blocking=True), *normalisation)
            labels = target = batch["label"].to(device, non_blocking=True)
            mixed = mixer(x, labels, batch["index"].tolist(), epoch) if mixer else None
            if mixed is not None:
                x, labels = mixed.video, mixed.heavier
            with autocast(config, device):
                logits = parallel(x)
                if mixed is not None:
                    target = mixed.targets(logits.shape[1])
                loss = F.cross_entropy(
                    logits.float(), target, label_smoothing=config.label_smoothing
                )
            value = loss.item()  # a device sync; the finite check and the bar are worth it
            if not math.isfinite(value):
                names = [train_set.clips.name(i) for i in batch["index"].tolist()]
                raise VidpipeError(
                    f"loss is {value} at step {step} (clips {', '.join(names[:4])}, ...); "
                    "lower methods.<method>.lr or set train.clip_grad_norm"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip_grad_norm is not None:
                trained = [p for p in model.parameters() if p.requires_grad]
                nn.utils.clip_grad_norm_(trained, config.clip_grad_norm)
            optimizer.step()
            lr = float(scheduler.get_last_lr()[0])
            scheduler.step()
            step += 1
            correct = (logits.argmax(1) == labels).sum().item()
            sums[:3] += torch.tensor([value * len(labels), correct, len(labels)])
            waited = time.perf_counter()
            speed = sums[2].item() * world_size / (waited - started)
            on_step(StepInfo(epoch, step, total_steps, value, (sums[1] / sums[2]).item(), speed))
        seconds = time.perf_counter() - started
        sums[3] = bad.found
        loss_sum, correct_sum, clips, unreadable = all_sum(sums, device).tolist()
        bad.check(int(unreadable))
        val_loss = val_top1 = None
        if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
            val_loss, val_top1 = validate(
                model, val_set, config, normalisation, device, rank, world_size
            )
        metrics = EpochMetrics(
            epoch + 1, step, loss_sum / clips, correct_sum / clips, lr, val_loss, val_top1
        )
        history.append(metrics)
        on_epoch(metrics, EpochTiming(clips / seconds, waiting / seconds))
    return history


class BadReads:
    """The clips of one epoch that could not be read, counted where batches arrive: each once,
    whichever loader process met it."""

    def __init__(self, data: TrainSet, fraction: float, clips: int) -> None:
        self.data, self.clips = data, clips
        self.allowed = max(1, int(fraction * clips))
        self.found = 0
        self.first: list[str] = []

    def count(self, batch: dict[str, Any]) -> None:
        """Raises as `check` does, as soon as this rank's own count is too large."""
        for i in batch["asked"][batch["replaced"]].tolist():
            self.found += 1
            if len(self.first) < 4:
                self.first.append(self.data.clips.name(i))
        self.check(self.found)

    def check(self, found: int) -> None:
        """Raises VidpipeError when `found` clips, of all ranks, are more than the epoch may have."""
        if found > self.allowed:
            named = f" ({', '.join(self.first)}, ...)" if self.first else ""
            raise VidpipeError(
                f"{found} of an epoch's {self.clips} clips could not be read{named}, more than "
                "train.max_bad_reads allows; run `vidpipe extract` again"
            )


def parameter_groups(model: VideoModel) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only: none on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": model.config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def lr_factor(step: int, warmup: float, total: int) -> float:
    """Of the peak learning rate at `step`: linear warm-up from near zero, then cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def all_sum(values: Tensor, device: torch.device) -> Tensor:
    """The sum over all workers, on the CPU."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    shared = values.to(device, torch.float64)
    dist.all_reduce(shared)
    return shared.cpu()


@torch.no_grad()
def validate(
    model: VideoModel,
    val_set: ViewSet,
    config: TrainConfig,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[float, float]:
    """(loss, top1) over one centre view of each clip; each counted once however many workers."""
    model.eval()
    own = torch.utils.data.Subset(val_set, range(rank, len(val_set), world_size))
    sums = torch.zeros(3, dtype=torch.float64)
    batch_size = max(1, config.batch_size // world_size)
    for batch in view_loader(own, batch_size, config.loader_workers, config.prefetch):
        video = batch["video"].to(device, non_blocking=True)
        x = to_input(video[:, 0], *normalisation)
        labels = batch["label"].to(device, non_blocking=True)
        with autocast(config, device):
            logits = model(x).float()
        loss = F.cross_entropy(logits, labels, reduction="sum").item()
        correct = (logits.argmax(1) == labels).sum().item()
        sums += torch.tensor([loss, correct, len(labels)])
    loss_sum, correct_sum, clips = all_sum(sums, device).tolist()
    return loss_sum / clips, correct_sum / clips
