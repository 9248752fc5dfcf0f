"""Multi-view evaluation, and whether a model uses the order of the frames at all.

Softmax of every view, averaged over the views, as in all three code bases. Beside it, from the same
read, the middle view is classified four times: its frames in order, reversed, shuffled, and all
replaced by the middle one. What accuracy is lost is what the model owes to the order of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from vidpipe.data.dataset import ViewSet, loader_workers, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.device import Precision, autocast
from vidpipe.features.sets import CachedTestViews
from vidpipe.methods.base import VideoModel
from vidpipe.methods.split import Split
from vidpipe.tasks.base import Predictions, Task, more_inputs
from vidpipe.tasks.registry import SINGLE_LABEL

ORDERS = ("in_order", "reversed", "shuffled", "frozen")
Average = Literal["softmax", "logits"]


@dataclass(frozen=True)
class Evaluator:
    """A model with all that turns clips into predictions, on the model's device."""

    model: VideoModel
    views: ViewSet | CachedTestViews
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    average: Average = "softmax"
    use_of_time: bool = True
    batch_size: int = 16
    """Clips that are computed at once, each with all its views."""
    precision: Precision = "auto"
    loader_workers: int | None = None
    """Decoding processes; None: some beside a GPU, none on a CPU."""
    task: Task = SINGLE_LABEL
    split: Split | None = None
    """Of the model, where `views` are kept features: those of a frame are that frame's alone."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Predictions of these clips of `views`: each entry has them as its leading dimension."""
        return joined(self.by_batch(indices))

    def by_batch(self, indices: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """As a call, but a batch at a time."""
        workers = loader_workers(self.loader_workers, self.device)
        clips = Subset(self.views, indices)
        for batch in view_loader(clips, self.batch_size, workers, device=self.device):
            yield self._predict(batch)

    @torch.no_grad()
    def _predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        more = more_inputs(batch, self.device)
        given = [batch["video"]] if self.split is None else batch["features"]
        parts = [x.to(self.device, non_blocking=True) for x in given]
        clips, count = parts[0].shape[:2]
        labels, indices = batch["label"].to(self.device), batch["index"].tolist()
        logits = self._logits([x.flatten(0, 1) for x in parts], *more).unflatten(0, (clips, count))
        if self.average == "softmax":
            probabilities = self.task.probabilities(logits).mean(1)
        else:
            probabilities = self.task.probabilities(logits.mean(1))
        result: dict[str, Tensor] = {
            "index": batch["index"],
            "label": batch["label"],
            "probabilities": probabilities,
            "view_correct": torch.stack(
                [self.task.correct(view, labels) for view in logits.unbind(1)], 1
            ),
        }
        if self.use_of_time:
            crops = self.views.spatial_crops
            middle = count // crops // 2 * crops + crops // 2
            result["in_order"] = self.task.probabilities(logits[:, middle])
            # One at a time: a batch of three times the size would need three times the memory.
            for name, order in self._orders(parts[0].shape[2], indices).items():
                rows = torch.arange(clips)[:, None]
                reordered = self._logits([x[:, middle][rows, order] for x in parts], *more)
                result[name] = self.task.probabilities(reordered)
        return {name: tensor.cpu() for name, tensor in result.items()}

    def _logits(self, parts: list[Tensor], *more: Tensor) -> Tensor:
        """Of clips (N, T, 3, h, w) uint8, or of what `split` keeps of them, (N, T, ...)."""
        network = (self.split or self.task.network(self.model)).eval()
        with autocast(self.precision, self.device):
            x = to_input(parts[0], *self.normalisation) if self.split is None else parts
            logits: Tensor = network(x, *more)
        return logits.float()

    def _orders(self, num_frames: int, indices: Sequence[int]) -> dict[str, Tensor]:
        """(clips, T) frame positions of each other order; a clip's shuffle is f(its index) only."""
        plain = torch.arange(num_frames)
        return {
            "reversed": plain.flip(0).expand(len(indices), -1),
            "shuffled": torch.stack([shuffled(num_frames, i) for i in indices]),
            "frozen": torch.full((len(indices), num_frames), num_frames // 2),
        }


def shuffled(num_frames: int, seed: int) -> Tensor:
    """A permutation of 0..T-1, never the identity where there is another."""
    plain = np.arange(num_frames)
    order = plain
    rng = np.random.default_rng([0, seed])
    while num_frames > 1 and (order == plain).all():
        order = rng.permutation(num_frames)
    return torch.from_numpy(order)


def joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Predictions of several batches as those of one."""
    all_parts = list(parts)
    return {name: torch.cat([part[name] for part in all_parts]) for name in all_parts[0]}


def batches(clips: int, batch_size: int) -> list[range]:
    """Every index once, in order: no clip is repeated to fill the last batch."""
    return [range(start, min(start + batch_size, clips)) for start in range(0, clips, batch_size)]


def predict(
    evaluator: Evaluator,
    apply: Callable[[list[range]], Iterable[dict[str, Tensor]]] | None = None,
    on_batch: Callable[[int], None] = lambda clips: None,
) -> Predictions:
    """All clips of the evaluator's views.

    `apply` maps the batches elsewhere (Ray's workers) and may give them back in any order, or several as
    one. Raises AssertionError should a clip be missing or come twice.
    """
    clips, found_parts = len(evaluator.views), []
    if apply is None:
        parts: Iterable[dict[str, Tensor]] = evaluator.by_batch(range(clips))
    else:
        parts = apply(batches(clips, evaluator.batch_size))
    for part in parts:
        found_parts.append(part)
        on_batch(len(part["index"]))
    whole = joined(found_parts)
    order = whole["index"].argsort()
    assert torch.equal(whole["index"][order], torch.arange(len(evaluator.views)))
    found: dict[str, Any] = {name: tensor[order] for name, tensor in whole.items()}
    return Predictions(
        evaluator.views.clips.ids,
        found["label"],
        found["probabilities"],
        found["view_correct"],
        {name: found[name] for name in ORDERS if name in found},
        clips=evaluator.views.clips,
    )
