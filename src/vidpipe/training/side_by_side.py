"""Trainings of one probe that differ in their rates and weight decay, side by side on kept features.

Each batch is read once and goes through all of them at once, with their parameters stacked: (K, ...) for
K trials, by torch.func.vmap. So V-JEPA's evaluation (Bardes et al., arXiv 2404.08471) trains its twenty
attentive probes. A trial has the numbers that it would have alone, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from vidpipe.data.batches import part_of
from vidpipe.data.dataset import view_loader
from vidpipe.data.model_input import batch_input
from vidpipe.device import autocast, autocast_dtype
from vidpipe.errors import TrainingStopped, VidpipeError
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.frozen_reader import FrozenReader
from vidpipe.methods.split import POOLED, Split
from vidpipe.training.loop import Trainer
from vidpipe.training.metrics import BadReads, EpochMetrics, Sums
from vidpipe.training.validate import Validation, known_score

RATES = frozenset({"lr", "base_lr", "weight_decay"})
"""Options of a method in which trainings side by side may differ."""
PROBES = frozenset({"linear_probe", "attentional_pooling", "attentive_probe"})
"""Methods that can go side by side: heads behind the last block; `refusal` has the others' reason."""
EPS = 1e-8
"""Of torch's AdamW."""


def refusal(split: Split, configs: Sequence[MethodConfig]) -> str | None:
    """Why trainings of these options cannot go side by side; None: they can."""
    model = split.model
    if isinstance(model, FrozenReader) or split.cut not in (POOLED, len(model.blocks)):
        return f"{model.name} trains more than a head behind the last block"
    if any(config.lr == "auto" for config in configs):
        return "lr: auto is found by each training alone"
    first, *others = (config.model_dump(exclude=set(RATES)) for config in configs)
    if any(other != first for other in others):
        return f"its trials differ in more than {', '.join(sorted(RATES))}"
    return None


@dataclass
class Finished:
    """How one of the trainings went: its epochs, and why it ended early, if it did."""

    history: list[EpochMetrics] = field(default_factory=list)
    error: str = ""


class SideBySide(Trainer):
    """K trainings from one start, with the same clips in the same order.

    As `Trainer`, on a `split`, in one process and without checkpoints; `configs` are the options of each
    training. `on_epochs` is called after each epoch with all that is finished so far.
    A loss or gradient that is not finite ends its own training only, with the error in its `Finished`.
    Raises VidpipeError where the trainings cannot go side by side (`refusal`), and TrainingStopped.
    """

    def __init__(
        self,
        *args: Any,
        configs: Sequence[MethodConfig],
        on_epochs: Callable[[list[Finished]], None] = lambda found: None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if not isinstance(self.whole, Split):
            raise VidpipeError("train.cache_features: off, but side by side goes on kept features")
        if why := refusal(self.whole, configs):
            raise VidpipeError(f"side by side: {why}")
        if autocast_dtype(self.config.precision, self.device) == torch.float16:
            raise VidpipeError("train.precision: fp16 scales the loss of one training, not of many")
        self.configs, self.on_epochs = configs, on_epochs
        self.found = [Finished() for _ in configs]
        count = len(configs)
        self.stacked = {
            name: p.detach().expand(count, *p.shape).clone() for name, p in self.trained.items()
        }
        """(K, ...) of each trained parameter."""
        self.average = {name: p.clone() for name, p in self.stacked.items()}
        self.moments = {name: (p * 0, p * 0) for name, p in self.stacked.items()}
        peaks = [config.peak_lr(self.config.batch_size) for config in configs]
        self.peaks = torch.tensor(peaks, device=self.device)
        self.decays = torch.tensor([c.weight_decay for c in configs], device=self.device)
        self.sums = [Sums() for _ in configs]

    def run(self) -> list[EpochMetrics]:
        """Train all to their end: `found`. Returns the first one's epochs."""
        while not self.progress.finished and not all(one.error for one in self.found):
            self.epoch()
            self.on_epochs(self.found)
        return self.found[0].history

    # -- an epoch -------------------------------------------------------------------------------

    def epoch(self) -> None:
        """One epoch of all, its numbers in `found`."""
        p = self.progress
        self.model.train()
        self.batches.epoch, self.batches.start_batch = p.epoch, 0
        count = min(len(self.batches), self.total_steps - p.step)
        bad = BadReads(self.train_set, self.config.max_bad_reads, self.batches.clips)
        for batch, _ in zip(self.loader, range(count), strict=False):
            self._step_all(batch, bad)
            p.step += 1
            if self.stop():
                raise TrainingStopped
        due = (p.epoch + 1) % self.config.eval_every == 0 or p.epoch + 1 == self.epochs
        validated = self._validate_all() if due and self.val_set is not None else None
        factor = self._lr(p.step - 1) / self.model.config.peak_lr(self.config.batch_size)
        for k, (one, sums) in enumerate(zip(self.found, self.sums, strict=True)):
            if not one.error:
                loss, top1, score = (None, None, None) if validated is None else validated[k]
                done = (p.epoch + 1, p.step, sums.mean_loss, sums.top1)
                rate, norm = float(self.peaks[k]) * factor, sums.mean_grad_norm
                one.history.append(EpochMetrics(*done, rate, loss, top1, norm, score))
        self.sums = [Sums() for _ in self.configs]
        p.epoch += 1
        p.finished = p.step >= self.total_steps

    def _step_all(self, batch: dict[str, Any], bad: BadReads) -> None:
        """One optimizer step of all trainings."""
        unreadable, clips = bad.count(batch), len(batch["label"])
        gradients: dict[str, Tensor] = {}
        losses, corrects = torch.zeros(2, len(self.configs), device=self.device)
        for part in self._parts(clips):
            self.model.clip_keys.now = self._keys(batch["index"][part])
            own, (loss, correct) = self._gradients(part_of(batch, part))
            share = (part.stop - part.start) / clips
            for name, gradient in own.items():
                # Not in place: what vmap gives may be one gradient seen K times.
                gradients[name] = gradients.get(name, 0) + gradient * share
            losses, corrects = losses + loss * share, corrects + correct
        self.model.clip_keys.now = None
        squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        if self.config.clip_grad_norm is not None:
            scale = (self.config.clip_grad_norm / (norms + 1e-6)).clamp(max=1)
            gradients = {name: g * _as(scale, g) for name, g in gradients.items()}
        numbers = torch.stack([losses, corrects, norms]).double().tolist()
        for k, (loss_k, correct_k, norm_k) in enumerate(zip(*numbers, strict=True)):
            for what, value in (("loss", loss_k), ("gradient norm", norm_k)):
                if not math.isfinite(value) and not self.found[k].error:
                    self.found[k].error = self._not_finite(what, value)
            sums = Sums(loss_k * clips, correct_k, clips, unreadable, norm_k, 1.0)
            self.sums[k].add(sums)
        self._update(gradients)

    def _not_finite(self, what: str, value: float) -> str:
        return (
            f"{what} is {value} at step {self.progress.step}; lower methods.{self.model.name}.lr or set "
            "train.clip_grad_norm"
        )

    def _gradients(self, batch: dict[str, Any]) -> Any:
        """Of the mean loss of a part of a batch, by name (K, ...); and losses and hits, (K,)."""
        x = batch_input(batch, self.normalisation, self.device)
        labels = batch["label"].to(self.device)

        def mean_loss(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            logits = self._logits(parameters, x)
            loss = self.task.loss(logits, labels, self.loss_options)
            return loss, (loss, self.task.correct(logits, labels).sum())

        with self._computing():
            return vmap(grad(mean_loss, has_aux=True))(self.stacked)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # Written out, since vmap would call torch's fused attention once a training.
        with autocast(self.config.precision, self.device), sdpa_kernel(SDPBackend.MATH):
            yield

    def _logits(self, parameters: Mapping[str, Tensor], x: Any) -> Tensor:
        named = {f"model.{name}": value for name, value in parameters.items()}
        logits: Tensor = functional_call(self.whole, named, (x,))
        return logits.float()

    @torch.no_grad()
    def _update(self, gradients: Mapping[str, Tensor]) -> None:
        """AdamW (decoupled weight decay), each training at its own rate."""
        step, (b1, b2) = self.progress.step, self.config.betas
        factor = self._lr(step) / self.model.config.peak_lr(self.config.batch_size)
        right1, right2 = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
        for name, p in self.stacked.items():
            g, (first, second) = gradients[name], self.moments[name]
            rates = _as(self.peaks * (factor * self.model.lr_scale(name)), p)
            if self.model.decays(name, self.trained[name]):
                p.mul_(1 - rates * _as(self.decays, p))
            first.lerp_(g, 1 - b1)
            second.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.sub_(rates / right1 * first / ((second / right2).sqrt() + EPS))
        if self.config.ema_decay is not None:
            decay = min(self.config.ema_decay, (2 + step) / (11 + step))
            for name, p in self.stacked.items():
                self.average[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def _validate_all(self) -> list[Validation]:
        """Of each training."""
        self.model.eval()
        weights = self.stacked if self.config.ema_decay is None else self.average
        sums = torch.zeros(2, len(self.configs), dtype=torch.float64)
        clips, ranked = 0, self.task.score != "top1"
        seen: list[tuple[Tensor, Tensor]] = []
        for batch in self._val_batches():
            x = batch_input(batch, self.normalisation, self.device)
            labels = batch["label"].to(self.device)

            def measured(
                parameters: dict[str, Tensor], x: Any = x, labels: Tensor = labels
            ) -> tuple[Tensor, Tensor, Tensor]:
                logits = self._logits(parameters, x)
                right = self.task.correct(logits, labels).sum()
                return self.task.loss_sum(logits, labels), right, logits

            with self._computing():
                *found, logits = vmap(measured)(weights)
            if ranked:
                seen.append((logits.cpu(), labels.cpu()))
            sums += torch.stack([part.double().cpu() for part in found])
            clips += len(labels)
            if self.stop():
                raise TrainingStopped
        scores: list[float | None] = [None] * len(self.configs)
        if ranked:
            whole = torch.cat([logits for logits, _ in seen], 1)
            labels = torch.cat([labels for _, labels in seen])
            scores = [known_score(self.task, own, labels) for own in whole]
        losses, corrects = (sums / clips).tolist()
        return [Validation(*own) for own in zip(losses, corrects, scores, strict=True)]

    def _val_batches(self) -> Iterator[dict[str, Any]]:
        config: Any = self.config
        options = (config.batch_size, config.loader_workers, config.prefetch, self.device)
        yield from view_loader(self.val_set, *options)  # type: ignore[arg-type]


def _as(each: Tensor, like: Tensor) -> Tensor:
    """(K,) -> (K, 1, ...), to go with (K, ...)."""
    return each.view(-1, *[1] * (like.ndim - 1))
