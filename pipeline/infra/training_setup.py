"""A training as `params` describe it, for the stage, a trial of a search and the dry run alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.infra.workspace import Workspace, open_store
from vidpipe.cpu import use_cpu
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.mixing import PairMixer
from vidpipe.new_model import new_model
from vidpipe.params import Params
from vidpipe.trained.card import TrainedModel
from vidpipe.training.loop import Trainer
from vidpipe.training.rate_watch import RateWatch
from vidpipe.video.store import FrameStore


@dataclass(frozen=True)
class TrainingSetup:
    """The model before its training, the clips, and the Trainer that they go into."""

    params: Params
    trained: TrainedModel
    train_set: TrainSet
    val_set: ViewSet

    @classmethod
    def build(
        cls,
        params: Params,
        method: str,
        workspace: Workspace,
        classes: Sequence[str] | None = None,
        store: FrameStore | None = None,
    ) -> TrainingSetup:
        """All that a training of `method` needs, built in this process, whose threads it sets. `classes`
        None: those of the store. `store` None: that of the workspace.

        Raises VidpipeError where there is no store, no clip, or no such model.
        """
        use_cpu(params.train.threads)
        store = open_store(workspace, params) if store is None else store
        classes = list(store.classes if classes is None else classes)
        trained = seeded_model(params, method, classes)
        return cls(
            params,
            trained,
            TrainSet(
                Clips(store, "train", classes, params.subset),
                params.sampling,
                trained.transform,
                params.train.seed,
            ),
            ViewSet(Clips(store, "val", classes), params.sampling, trained.transform),
        )

    def trainer(self, device: torch.device, **options: Any) -> Trainer:
        """`options` as of `Trainer`: rank, checkpoints, callbacks; `val_set` None: no validation."""
        return Trainer(
            self.trained.model,
            self.train_set,
            options.pop("val_set", self.val_set),
            self.params.train,
            (self.trained.backbone.mean, self.trained.backbone.std),
            device=device,
            labels=self.train_set.clips.labels,
            task=self.trained.task,
            mixer=PairMixer.of(self.params.transform, self.params.train.seed),
            **options,
        )

    def watch(self, trainer: Trainer) -> RateWatch:
        """Of a training that this is the setup of."""
        name, config = self.trained.model.name, self.trained.model.config
        counts = np.bincount(self.train_set.clips.labels)
        balanced = self.params.train.balance == "sample"
        return RateWatch(
            f"methods.{name}.{'base_lr' if config.lr is None else 'lr'}",
            config.peak_lr(self.params.train.batch_size),
            classes=len(self.train_set.clips.classes),
            chance=1 / np.count_nonzero(counts) if balanced else counts.max() / counts.sum(),
            clips=trainer.batches.clips,
            epochs=trainer.epochs,
            warmup=self.params.train.warmup_epochs,
            history=trainer.progress.history,
        )


def seeded_model(params: Params, method: str, classes: list[str]) -> TrainedModel:
    """The model that every process begins with: what is random in it comes from `train.seed`."""
    torch.manual_seed(params.train.seed)
    return new_model(params, method, classes)
