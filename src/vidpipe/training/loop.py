"""Fine-tuning the trained parameters of a frozen model: a plain loop over epochs and batches.

All that a run is depends on the seed, the epoch and the step, and on nothing that ran before in the
process; so a training that goes on from a checkpoint ends with the bits of one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidpipe.data.batches import EpochBatches, part_of, parts
from vidpipe.data.dataset import Samples, Views, train_loader
from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import batch_input
from vidpipe.device import autocast, autocast_dtype
from vidpipe.errors import Diverged, TrainingStopped, VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.noise import GOLDEN, lowbias32
from vidpipe.methods.split import Split
from vidpipe.tasks.base import LossOptions, Task, more_inputs
from vidpipe.tasks.registry import SINGLE_LABEL
from vidpipe.training.config import TrainConfig
from vidpipe.training.ema import Ema
from vidpipe.training.metrics import BadReads, EpochMetrics, EpochTiming, StepInfo, Sums
from vidpipe.training.optim import (
    lr_factor,
    make_optimizer,
    refuse_frozen_gradients,
    set_lr,
    trained_parameters,
)
from vidpipe.training.parallel import (
    all_sum,
    average_gradients,
    broadcast_from_rank0,
    gathered,
    same_start,
)
from vidpipe.training.patch_drop import drop_patches, refuse_patch_drop
from vidpipe.training.rate_test import RateTest, find_rate
from vidpipe.training.recompute import choose_recomputed
from vidpipe.training.state import Checkpoints, Progress, restore
from vidpipe.training.validate import validate


class Trainer:
    """One training, from its last checkpoint where it has one.

    `val_set` None: no validation. `checkpoints`: where to save and to look; None saves nothing.
    `stop`: asked in each step; once true on any worker, all save and raise TrainingStopped. `mixer`
    mixes pairs of clips; the training accuracy then counts their heavier labels. `labels` of the clips
    are needed with `train.balance`. `split`: of the model, where samples are kept features. Callbacks
    run on every rank: `on_step` after each step, `on_epoch` after each epoch and its checkpoint.
    Raises VidpipeError when loss or gradient is not finite, naming the step and the clips; when a
    frozen weight received a gradient; and when an epoch had more unreadable clips than
    `train.max_bad_reads` allows.
    """

    def __init__(
        self,
        model: VideoModel,
        train_set: Samples,
        val_set: Views | None,
        config: TrainConfig,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        *,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
        mixer: PairMixer | None = None,
        labels: NDArray[Any] | None = None,
        task: Task = SINGLE_LABEL,
        split: Split | None = None,
        checkpoints: Checkpoints | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[StepInfo], None] = lambda info: None,
        on_epoch: Callable[[EpochMetrics, EpochTiming], None] = lambda metrics, timing: None,
    ) -> None:
        self.model, self.train_set, self.val_set, self.config = model, train_set, val_set, config
        self.normalisation, self.mixer, self.task = normalisation, mixer, task
        self.rank, self.world_size = rank, world_size
        self.checkpoints, self.stop = checkpoints, stop
        self.on_step, self.on_epoch = on_step, on_epoch
        self.on_rate: Callable[[float], None] = lambda lr: None  # with what `lr: auto` found
        self.device = device or torch.device("cpu")
        model.to(self.device)
        self.batches = EpochBatches(
            *(len(train_set), config.batch_size, config.seed, rank, world_size),
            shards=train_set.clips.shards if config.shuffle == "shards" else None,
            labels=labels if config.balance == "sample" else None,
            pairs=mixer is not None,
            drop_last=config.drop_last,
        )
        weights = None
        if config.balance == "weights" and labels is not None:
            outputs = int(model.head.out_features)
            weights = task.class_weights(labels, outputs).to(self.device)
        boxes = getattr(train_set.clips, "boxes_per_clip", 1.0)  # of task detection
        options = (config.label_smoothing, weights, boxes, config.focal_gamma)
        self.loss_options = LossOptions(*options)
        workers, prefetch = config.loader_workers, config.prefetch
        self.loader = train_loader(train_set, self.batches, workers, prefetch, self.device)
        self.total_steps = config.steps or config.epochs * len(self.batches)
        self.epochs = -(-self.total_steps // len(self.batches))
        self.warmup = config.warmup_epochs * len(self.batches)
        if self.warmup >= self.total_steps:
            raise VidpipeError(
                f"train.warmup_epochs: {config.warmup_epochs:g} epochs are {self.warmup:g} steps, "
                f"and there are {self.total_steps} in all; lower it or raise train.steps"
            )
        self.whole: nn.Module = task.network(model) if split is None else split
        self.forward: nn.Module = torch.compile(self.whole) if config.compile else self.whole  # type: ignore[assignment]
        self.trained = trained_parameters(model)
        if not self.trained:
            raise VidpipeError(f"method {model.name}: it trains nothing; evaluate it as it is")
        refuse_patch_drop(model, config, split)
        same_start(list(self.trained.values()))
        self.optimizer = make_optimizer(model, config, self.device)
        self.ema = Ema(self.trained, config.ema_decay) if config.ema_decay is not None else None
        fp16 = autocast_dtype(config.precision, self.device) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.started = False
        self.rate_test: RateTest | None = None
        self.progress = Progress()
        self.resumed_from: Path | None = None
        if checkpoints is not None:
            if rank == 0:
                checkpoints.clean()
                checkpoints.fetch()
            last = checkpoints.last()
            name = broadcast_from_rank0(last.name if last else None)
            if name is not None:
                checkpoints.fetch(name)  # on a node that does not share rank 0's folder
                self.resumed_from = checkpoints.folder / name
                state = (model, self.optimizer, self.ema, self.scaler)
                self.progress = restore(self.resumed_from, *state)

    def run(self) -> list[EpochMetrics]:
        if self.model.config.lr == "auto" and self.progress.lr is None:
            self.progress.lr = find_rate(self)
            self.on_rate(self.progress.lr)
        while not self.progress.finished:
            timing = EpochTiming(clips_per_s=0.0, data_wait=0.0)
            for info in self.steps():
                self.on_step(info)
                timing = EpochTiming(info.clips_per_s, info.data_wait)
            metrics = self._end_epoch(timing)
            self.on_epoch(metrics, timing)
        self.model.recomputed, self.model.patch_drop = 0, None
        if self.ema is not None:
            self.ema.copy_to_model()
        return self.progress.history

    # -- an epoch ---------------------------------------------------------------------------

    def steps(self) -> Iterator[StepInfo]:
        """Take what is left of the epoch, one optimizer step at a time.

        Raises TrainingStopped, the state saved, after the step in which it was asked to stop.
        """
        p, every = self.progress, self.config.checkpoint_every
        self.model.train()
        self.forward.train()
        self.batches.epoch, self.batches.start_batch = p.epoch, p.batch
        count = min(len(self.batches), self.total_steps - p.epoch * len(self.batches))
        bad = BadReads(self.train_set, self.config.max_bad_reads, self.batches.clips)
        started = waited = time.perf_counter()
        waiting, before, first = 0.0, p.sums.clips, p.step
        loader = iter(self.loader) if p.batch < count else iter(())
        for _ in range(p.batch, count):
            batch = next(loader, None)  # none: the last batch has fewer clips than there are ranks
            wait = time.perf_counter() - waited
            waiting += wait
            loss, norm, stopping = self._step(batch, bad)
            p.step, p.batch = p.step + 1, p.batch + 1
            if stopping or (every is not None and p.step % every == 0 and p.batch < count):
                self._save()
            now = time.perf_counter()
            lr, spent = self._lr(p.step - 1), now - started
            pace = (spent / (p.step - first), (p.sums.clips - before) / spent, waiting / spent)
            where, own = (p.epoch, p.step, self.total_steps), (now - waited, wait)
            yield StepInfo(*where, loss, p.sums.top1, lr, norm, *pace, *own)
            if stopping:
                raise TrainingStopped
            waited = time.perf_counter()

    def _end_epoch(self, timing: EpochTiming) -> EpochMetrics:
        p, config, sums = self.progress, self.config, self.progress.sums
        seen = None
        due = (p.epoch + 1) % config.eval_every == 0 or p.epoch + 1 == self.epochs
        if self.val_set is not None and due:
            self._save()  # validation may be long
            shared = (self.device, self.rank, self.world_size, self.stop, self.task)
            with nullcontext() if self.ema is None else self.ema.applied():
                seen = validate(self.whole, self.val_set, config, self.normalisation, *shared)
        lr, norm = self._lr(p.step - 1), sums.mean_grad_norm
        loss, top1, score = (None, None, None) if seen is None else seen
        done = (p.epoch + 1, p.step, sums.mean_loss, sums.top1, lr)
        metrics = EpochMetrics(*done, loss, top1, norm, score)
        p.history.append(metrics)
        p.timing.append(timing)
        p.epoch, p.batch, p.sums = p.epoch + 1, 0, Sums()
        p.finished = p.step >= self.total_steps
        if (best := metrics.decides) is not None and (p.best_score is None or best > p.best_score):
            p.best_score, p.best = best, f"{p.step:08d}-{p.epoch:04d}"
        self._save()
        return metrics

    # -- a step -----------------------------------------------------------------------------

    def _step(self, batch: dict[str, Any] | None, bad: BadReads) -> tuple[float, float, bool]:
        """(loss, gradient norm, whether to stop now), over all ranks. `batch` is this rank's share of
        the global batch, None where it has no clip of it."""
        p, config = self.progress, self.config
        clips, of_all = 0 if batch is None else len(batch["label"]), self.batches.size_of(p.batch)
        self._seed()
        set_lr(self.optimizer, self._lr(p.step))
        drop_patches(self.model, config, p.step / self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        unreadable, done = 0 if batch is None else bad.count(batch), []
        if batch is None:
            self.scaler.scale(torch.zeros((), device=self.device))  # it begins with its first loss
        else:
            if not self.started:
                self._choose_recomputed(batch)
            for part in self._parts(clips):
                # Until the backward pass is done: what it computes again has the same mask again.
                self.model.clip_keys.now = self._keys(batch["index"][part])
                loss, correct = self._forward(part_of(batch, part))
                count = part.stop - part.start
                # Ranks are averaged: each part weighs by its clips among those of all of them.
                weight = count * self.world_size / of_all
                self.scaler.scale(loss if weight == 1 else loss * weight).backward()
                done.append((loss.detach(), correct, count))
            self.model.clip_keys.now = None
            if not self.started:
                refuse_frozen_gradients(self.model)
                self.started = True
        # Reading them waits for the device; the finite check and the bar are worth it.
        loss_sum = sum(loss.item() * count for loss, _, count in done)
        correct_sum = sum(correct.item() for _, correct, _ in done)
        own = torch.tensor([loss_sum, correct_sum, clips, unreadable, float(self.stop())])
        # In the precision of the sums: of many workers and steps, no order of adding shall show.
        *totals, stopping = all_sum(own.double(), self.device).tolist()
        step = Sums(*totals)
        if not math.isfinite(step.loss):
            self._fail("loss", step.mean_loss, batch)
        parameters = list(self.trained.values())
        average_gradients(parameters, self.world_size)
        self.scaler.unscale_(self.optimizer)
        if config.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm).item()
        else:
            gradients = [x.grad for x in parameters if x.grad is not None]
            norm = nn.utils.get_total_norm(gradients).item()
        if math.isfinite(norm):
            step.grad_norm, step.finite_steps = norm, 1.0
        elif not self.scaler.is_enabled():  # which leaves this step out, and scales less
            self._fail("gradient norm", norm, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(p.step + 1)
        p.sums.add(step)
        bad.check(int(p.sums.unreadable))
        return step.mean_loss, norm, stopping > 0

    @property
    def clips_at_once(self) -> int:
        """Clips of the largest part of a whole batch."""
        return next(self._parts(-(-self.batches.batch_size // self.world_size))).stop

    def _choose_recomputed(self, batch: dict[str, Any]) -> None:
        """For whole batches, whichever comes first."""
        size = batch["video"].shape[-1] if "video" in batch else self.model.img_size
        options = (size, self.clips_at_once, self.config, self.device)
        self.model.recomputed = choose_recomputed(self.model, *options)

    def _forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Mean loss of a part of a batch, and its number of clips that were right."""
        x = batch_input(batch, self.normalisation, self.device)
        labels = target = batch["label"].to(self.device, non_blocking=True)
        mixed = None
        if self.mixer is not None:
            assert isinstance(x, Tensor)
            mixed = self.mixer(x, labels, batch["index"].tolist(), self.progress.epoch)
            x, labels = mixed.video, mixed.heavier
        with autocast(self.config.precision, self.device):
            logits = self.forward(x, *more_inputs(batch, self.device))
            if mixed is not None:
                target = mixed.targets(logits.shape[-1])
            loss = self.task.loss(logits.float(), target, self.loss_options)
        return loss, self.task.correct(logits, labels).sum()

    def _parts(self, clips: int) -> Iterator[slice]:
        """`accumulate` parts of this worker's clips; pairs to be mixed stay together."""
        return parts(clips, self.config.accumulate, 1 if self.mixer is None else 2)

    def _seed(self) -> None:
        """Whatever draws in a method of one's own depends on the seed, the step and the rank, and on
        nothing that ran before; the masks of `vidpipe.methods` do not even depend on the rank."""
        words = np.random.SeedSequence([self.config.seed, self.progress.step, self.rank])
        torch.manual_seed(int(words.generate_state(1)[0]))

    def _keys(self, index: Tensor) -> Tensor:
        """What a clip's dropout depends on: the seed, the epoch and the clip. (B,) -> (B,)"""
        words = np.random.SeedSequence([self.config.seed, self.progress.epoch])
        start = int(words.generate_state(1)[0])
        return lowbias32((index.to(self.device) * GOLDEN + start) & 0xFFFFFFFF)

    @property
    def peak_lr(self) -> float:
        """Of `lr: auto`, before it is found, what `null` has."""
        return self.progress.lr or self.model.config.peak_lr(self.config.batch_size)

    def _lr(self, step: int) -> float:
        if self.rate_test is not None:
            return self.rate_test.lr
        epoch = len(self.batches) if self.config.lr_schedule == "cosine_by_epoch" else None
        where = (step, self.warmup, self.total_steps)
        return self.peak_lr * lr_factor(*where, start=self.config.warmup_from, epoch=epoch)

    def _save(self, failed: bool = False) -> None:
        """Only rank 0 writes; all have the same to write."""
        if self.checkpoints is not None and self.rank == 0:
            state = (self.progress, self.model, self.optimizer, self.ema, self.scaler)
            self.checkpoints.save(*state, failed=failed)

    def _fail(self, what: str, value: float, batch: dict[str, Any] | None) -> None:
        own = [] if batch is None else batch["index"].tolist()
        names = gathered([self.train_set.clips.name(i) for i in own])
        self._save(failed=True)
        folder = self.checkpoints.folder / "failed" if self.checkpoints else None
        saved = f"; the state before it is in {folder}" if folder else ""
        raise Diverged(
            f"{what} is {value} at step {self.progress.step} (clips {', '.join(names[:4])}, ...); "
            f"lower methods.<method>.lr or set train.clip_grad_norm{saved}"
        )
