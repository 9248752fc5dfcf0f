"""A training as `params` describe it, for the stage, a trial of a search and the dry run alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from pipeline.infra.console import console
from pipeline.infra.workspace import Workspace, open_store
from vidpipe.backbones.families import view_of
from vidpipe.backbones.input_card import completed
from vidpipe.backbones.swin import SWINS
from vidpipe.backbones.zoo import architecture
from vidpipe.cpu import use_cpu
from vidpipe.data.dataset import Samples, TrainSet, Views, ViewSet
from vidpipe.data.mixing import PairMixer
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.features.cache import FeatureCache
from vidpipe.features.place import Place
from vidpipe.methods.config import STDHAConfig
from vidpipe.methods.offset_search import covering_design, heads_allowed
from vidpipe.methods.split import Split
from vidpipe.new_model import new_model
from vidpipe.params import Params
from vidpipe.tasks.clips import open_clips, open_train_set, open_views
from vidpipe.trained.trained_model import TrainedModel
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
    features: Place = field(default_factory=partial(Place, "features"))
    """Where frozen features are kept."""

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
            open_train_set(
                open_clips(store, "train", classes, params.subset),
                params.sampling,
                trained.transform,
                params.train.seed,
            ),
            open_views(open_clips(store, "val", classes), params.sampling, trained.transform),
            workspace.features(params),
        )

    def trainer(
        self,
        device: torch.device,
        *,
        cached: bool = True,
        kind: type[Trainer] | None = None,
        **options: Any,
    ) -> Trainer:
        """`options` as of `Trainer`: rank, checkpoints, callbacks; `val_set` None: no validation.
        `cached` False: on frames, whatever `train.cache_features` says. `kind`: None: the plain one."""
        train_set: Samples = self.train_set
        val_set: Views | None = options.pop("val_set", self.val_set)
        split = None
        if cached and self.params.train.cache_features != "off":
            split = Split(self.trained.model.to(device))
            cache = FeatureCache(
                *(self.features, split, self.trained.backbone),
                *(self.params.train, device, console.print),
            )
            ranks = {key: options[key] for key in ("rank", "world_size") if key in options}
            val = self.val_set if val_set is not None else None
            train_set, val_set = cache.sets(self.train_set, val, **ranks)
        return (kind or Trainer)(
            self.trained.model,
            train_set,
            val_set,
            self.params.train,
            (self.trained.backbone.mean, self.trained.backbone.std),
            device=device,
            labels=self.train_set.clips.labels,
            task=self.trained.task,
            split=split,
            mixer=PairMixer.of(self.params.transform, self.params.train.seed),
            **options,
        )

    def watch(self, trainer: Trainer) -> RateWatch:
        """Of a training that this is the setup of."""
        name, config = self.trained.model.name, self.trained.model.config
        clips, task = self.train_set.clips, self.trained.task
        return RateWatch(
            f"methods.{name}.{'base_lr' if config.lr is None else 'lr'}",
            lambda: trainer.peak_lr,
            guess=task.guess(len(clips.classes)),
            chance=task.chance(clips.labels, self.params.train.balance == "sample"),
            clips=trainer.batches.clips,
            epochs=trainer.epochs,
            warmup=self.params.train.warmup_epochs,
            history=trainer.progress.history,
        )


def seeded_model(params: Params, method: str, classes: list[str]) -> TrainedModel:
    """The model that every process begins with: what is random in it comes from `train.seed`. Of
    `head_offsets: auto`, the one that the search trains."""
    params = covering(params, method)
    torch.manual_seed(params.train.seed)
    return new_model(params, method, classes)


def covering(params: Params, method: str) -> Params:
    """`params` with the design that has every offset within reach, where they ask for a search.

    Raises VidpipeError for a budget of no heads, and on a Swin.
    """
    if not searches_offsets(params, method):
        return params
    budget = cast(STDHAConfig, params.method(method)).searched
    assert budget is not None
    form = InputForm.of(completed(params.transform, params.backbone))
    with torch.device("meta"):
        vit = architecture(params.backbone, form.size)
    if isinstance(vit, SWINS):
        raise VidpipeError(
            f"methods.{method}.head_offsets: auto searches the heads of a ViT; give a Swin's by stage"
        )
    blocks = view_of(vit).blocks
    depth, heads = len(blocks), blocks[0].num_heads
    heads_allowed(budget, depth, heads, params.sampling.num_frames, method)
    chosen = cast(STDHAConfig, params.method(method)).blocks
    design = tuple(
        dts if chosen is None or block in chosen else ()
        for block, dts in enumerate(covering_design(depth, heads, budget.reach))
    )
    return with_method_options(params, method, head_offsets=design)


def searches_offsets(params: Params, method: str) -> bool:
    """Whether a training of `method` begins with a search of its head offsets."""
    config = params.method(method)
    return isinstance(config, STDHAConfig) and config.searched is not None


def with_method_options(params: Params, method: str, **options: Any) -> Params:
    """`params` with other options of `method`."""
    config = params.method(method).model_copy(update=options)
    return params.model_copy(update={"methods": {**params.methods, method: config}})
