"""`head_offsets: auto`: the search that comes before a training, and what it leaves.

The search trains once, in this process, with the design that covers all offsets (`TrainingSetup`),
weighs the heads on training clips, and keeps what it found in its folder until the training is done. A
search that was killed goes on from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.infra.console import console
from pipeline.infra.mlflow.tracking import tracked_run
from pipeline.infra.training_setup import TrainingSetup, with_method_options
from pipeline.infra.workspace import Workspace
from vidpipe.data.dataset import ViewSet, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.device import choose_device, set_determinism
from vidpipe.files import read_json, write_json
from vidpipe.methods.offset_search import Design, Round, found_design, heads_allowed
from vidpipe.methods.stdha import STDHA
from vidpipe.params import Params
from vidpipe.training.loop import Trainer
from vidpipe.training.metrics import EpochMetrics, EpochTiming
from vidpipe.video.store import FrameStore

CLIPS = 128
"""Training clips that the heads are weighed on, at most; spread evenly over all."""


@dataclass(frozen=True)
class Found:
    """What a search found, and how."""

    method: str
    design: Design
    heads: int
    """Of a block."""
    rounds: tuple[Round, ...]

    @property
    def text(self) -> str:
        """As `--set` takes it."""
        return str([list(dts) for dts in self.design]).replace(" ", "")

    def plain(self) -> dict[str, Any]:
        """What is written to a file."""
        return {
            "method": self.method,
            "head_offsets": [list(dts) for dts in self.design],
            "heads": self.heads,
            "rounds": [asdict(own) for own in self.rounds],
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Found:
        def nested(rows: Any) -> Any:
            return tuple(tuple(row) for row in rows)

        rounds = tuple(Round(nested(r["design"]), nested(r["saved"])) for r in plain["rounds"])
        return cls(plain["method"], nested(plain["head_offsets"]), plain["heads"], rounds)


def with_offsets(params: Params, method: str, found: Found) -> Params:
    """`params` with the offsets that were found."""
    return with_method_options(params, method, head_offsets=found.design)


def search(
    params: Params,
    method: str,
    workspace: Workspace,
    name: str,
    *,
    store: FrameStore | None = None,
    stop: Callable[[], bool] = lambda: False,
    parent: str | None = None,
    tracked: bool = True,
) -> Found:
    """The offsets of `params`, where `searches_offsets`; found once, and read from then on.

    Args:
        name: of its folder below `workspace.ray`, which the caller removes.
        store: its training clips are used; None: the workspace's.
        stop: asked in each step; TrainingStopped is raised once it is true, the state saved.
        parent: id of the MLflow run that this one is nested in.
        tracked: whether there is a run in MLflow.

    Raises:
        VidpipeError: for a budget of no heads, before anything is trained.
    """
    folder = workspace.ray / name
    file = folder / "found.json"
    if file.exists():
        return Found.of(read_json(file))
    device = choose_device("auto" if params.train.num_workers else params.train.use_gpu)
    setup = TrainingSetup.build(params, method, workspace, store=store)
    model = cast(STDHA, setup.trained.model)
    budget = cast(Any, params.method(method)).searched
    depth, heads = len(model.blocks), model.blocks[0].num_heads
    most = heads_allowed(budget, depth, heads, model.num_frames, method)
    console.print(
        f"{method}: searching head_offsets, at most {most} of {depth * heads} heads up to "
        f"{budget.reach} frames away; one training, then the heads are weighed"
    )
    run = tracked_run(params.tracking, "offsets", method, name) if tracked else nullcontext()
    with run as own, set_determinism(params.train.deterministic):
        if own is not None:
            own.tags({"mlflow.parentRunId": parent} if parent else {})
            own.params({"method": method, "share": budget.share, "reach": budget.reach})

        def on_epoch(metrics: EpochMetrics, timing: EpochTiming) -> None:
            line = f"loss {metrics.train_loss:.3f}  top1 {metrics.train_top1:.1%}"
            console.print(f"{method} search  epoch {metrics.epoch}/{trainer.epochs}  {line}")
            if own is not None:
                own.metrics(metrics.curves(), metrics.epoch)

        checkpoints = workspace.checkpoints(params, name)
        trainer = setup.trainer(
            device, checkpoints=checkpoints, stop=stop, on_epoch=on_epoch, val_set=None
        )
        trainer.run()
        design, rounds = found_design(
            model, most, TrainingBatches(setup, trainer, device), setup.trained.task.loss_sum
        )
        found = Found(method, design, heads, tuple(rounds))
        write_json(file, found.plain())
        if own is not None:
            own.tags({"head_offsets": found.text})
            own.artifact(file)
    if checkpoints.mirror is not None:
        checkpoints.mirror.remove()
    console.print(f"{method}: found head_offsets {found.text}")
    return found


class TrainingBatches:
    """The middle views of at most `CLIPS` training clips, normalised, in an order that never changes."""

    def __init__(self, setup: TrainingSetup, trainer: Trainer, device: torch.device) -> None:
        self.setup, self.device, self.size = setup, device, trainer.clips_at_once
        clips = setup.train_set.clips
        self.views = ViewSet(clips, setup.params.sampling, setup.trained.transform)
        count = min(CLIPS, len(clips.labels))
        self.chosen = np.linspace(0, len(clips.labels) - 1, count).round().astype(int).tolist()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        own: Any = torch.utils.data.Subset(cast(Any, self.views), self.chosen)
        backbone = self.setup.trained.backbone
        for batch in view_loader(own, self.size, device=self.device):
            video = batch["video"][:, 0].to(self.device)
            yield to_input(video, backbone.mean, backbone.std), batch["label"]


def publish(found: Found, workspace: Workspace) -> Path:
    """The search as `results/offsets/METHOD.json` and its picture beside it; returns the picture."""
    from vidpipe.viz.offsets import plot_offsets

    folder = workspace.results / "offsets"
    write_json(folder / f"{found.method}.json", found.plain())
    picture = folder / f"{found.method}.png"
    plot_offsets(found.design, found.heads, found.rounds, found.method, picture)
    return picture
