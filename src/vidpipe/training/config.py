"""`train` in params.yaml. No torch: read by the CLI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vidpipe.config.section import AbsentAtDefault, NotDecisive, Section, Seed, SetBySearch

Beta = Annotated[float, Field(ge=0, lt=1)]


class CachedViews(Section):
    views: int = Field(
        4, ge=1, le=1000, description="of a clip, drawn once; epochs see them in turn (bf16)"
    )


class TrainConfig(Section):
    epochs: Annotated[int, SetBySearch("it sets how long a trial is")] = Field(ge=1)
    steps: Annotated[int | None, SetBySearch("it sets how long a trial is, in epochs")] = Field(
        None, ge=1, description="optimizer steps in all, in place of epochs (ST-Adapter: 20k)"
    )
    batch_size: int = Field(
        ge=1, le=65_536, description="clips of one optimizer step, over all workers"
    )
    drop_last: bool = Field(
        False, description="leave out the last batch of an epoch where it has fewer clips"
    )
    accumulate: int = Field(1, ge=1, description="parts that batch is computed in, for memory")
    warmup_epochs: float = Field(ge=0)
    warmup_from: float = Field(
        0.0, ge=0, lt=1, description="of the peak learning rate, where the linear warm-up begins"
    )
    lr_schedule: Literal["cosine_by_step", "cosine_by_epoch"] = Field(
        "cosine_by_step",
        description="by_step: falls from the end of the warm-up, in every step (ST-Adapter's code); "
        "by_epoch: from the first epoch, one rate an epoch, times the warm-up (AIM's, ZeroI2V's)",
    )
    clip_grad_norm: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and publish an average of the trained weights"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 autocast on a GPU, fp32 on a CPU; fp16 scales the loss"
    )
    activation_gb: Annotated[float | None, NotDecisive(unless=("compile", True))] = Field(
        None,
        ge=0,
        description="blocks are recomputed in the backward pass until activations of one worker fit; "
        "0: all blocks; null: none",
    )
    deterministic: bool = Field(
        True, description="the same bits again, on one kind of device; false: faster on a GPU"
    )
    compile: bool = Field(False, description="torch.compile; minutes at the start, bits may differ")
    starts_from: str | None = Field(
        None,
        description="adapter folder to begin with, of the same method on the same weights; its head, "
        "too, where the classes are the same",
    )
    checkpoint_every: Annotated[int | None, NotDecisive()] = Field(
        None, ge=1, description="steps between checkpoints; null: at the end of each epoch"
    )
    storage: Annotated[str | None, NotDecisive()] = Field(
        None, description="fsspec URL that keeps a copy of checkpoints, such as s3://bucket/runs"
    )
    publish: Literal["last", "best"] = Field(
        "last",
        description="epoch whose weights are published: the papers' last, or the best in validation "
        "(top-1; of several labels and of boxes mAP), which is then measured on the clips that chose it",
    )
    eval_every: Annotated[
        int,
        NotDecisive(unless=("publish", "best")),
        SetBySearch("it validates every epoch"),
    ] = Field(1, ge=1, description="epochs between validations")
    num_workers: Annotated[int, SetBySearch("a trial is one process")] = Field(
        0, ge=0, le=4096, description="Ray Train workers; 0 trains in this process"
    )
    worker_restarts: Annotated[int, NotDecisive()] = Field(
        3, ge=0, description="times lost workers are started again, from the last checkpoint"
    )
    cpus_per_worker: Annotated[int, NotDecisive()] = Field(1, ge=1, le=1024)
    memory_gb_per_worker: Annotated[float, NotDecisive()] = Field(
        2, ge=0.01, le=100_000, description="refused where not available"
    )
    use_gpu: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="also of other commands; auto: where this machine, or Ray's cluster, has one",
    )
    threads: int = Field(
        2, ge=1, le=1024, description="of torch, per process; changes the last bits"
    )
    loader_workers: Annotated[int, NotDecisive()] = Field(
        0, ge=0, le=256, description="decoding processes per training worker"
    )
    prefetch: Annotated[int, NotDecisive()] = Field(
        2, ge=1, le=1000, description="batches each loader worker keeps ready"
    )
    shuffle: Literal["full", "shards"] = Field(
        "full", description="shards: in windows of a few shards, for a store read over a network"
    )
    balance: Annotated[Literal["none", "sample", "weights"], AbsentAtDefault()] = Field(
        "none",
        description="where classes have unequal numbers of clips. sample: an epoch draws each class "
        "equally often; weights: the loss of a class counts by the inverse of its clips",
    )
    focal_gamma: Annotated[float, AbsentAtDefault()] = Field(
        0.0,
        ge=0,
        le=10,
        description="of focal loss, for data.task multilabel: how much less a class of a clip counts "
        "that is decided already; 0: plain cross-entropy",
    )
    patch_drop: Annotated[float, AbsentAtDefault()] = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the patches that a training step leaves out, the same in every frame of a "
        "clip, with cache_features behind the frozen blocks; validation and tests see all",
    )
    patch_drop_by: Annotated[Literal["random", "motion"], AbsentAtDefault()] = Field(
        "random", description="motion: those that change least over the clip go first"
    )
    patch_drop_until: Annotated[float, AbsentAtDefault()] = Field(
        1.0, gt=0, le=1, description="of all steps; those that follow see every patch"
    )
    cache_features: Annotated[Literal["off", "exact"] | CachedViews, AbsentAtDefault()] = Field(
        "off",
        description="what lies before the first trained block is computed once and kept on the disk. "
        "exact: the bits of the uncached training, where a clip's view is always the same; {views: N}: "
        "N random views a clip, in bf16",
    )
    cache_folder: Annotated[str | None, NotDecisive()] = Field(
        None,
        description="where cached features lie, a folder or an fsspec URL such as s3://bucket/features; "
        "null: `features` beside `data`",
    )
    max_bad_reads: Annotated[float, NotDecisive()] = Field(
        0.01, ge=0, le=1, description="of an epoch's clips; more unreadable ones end the training"
    )
    cache_mb: Annotated[int, NotDecisive()] = Field(
        1024, ge=0, description="decoded clips kept in memory, per process"
    )
    seed: Annotated[Seed, SetBySearch("its trials share it, or luck would be searched")] = 0

    @field_validator("use_gpu", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML 1.1 reads yes and no as truth values.
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("cache_features", mode="before")
    @classmethod
    def _as_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 again

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.num_workers and self.batch_size % self.num_workers:
            raise ValueError(
                f"train.batch_size {self.batch_size} does not divide among "
                f"num_workers {self.num_workers}; gradients would be weighted unequally"
            )
        if self.batch_size % (max(1, self.num_workers) * self.accumulate):
            raise ValueError(
                f"train.batch_size {self.batch_size} does not divide into accumulate "
                f"{self.accumulate} parts on {max(1, self.num_workers)} workers"
            )
        if self.cache_features != "off" and self.patch_drop and self.patch_drop_by == "motion":
            raise ValueError(
                "train.patch_drop_by: motion is seen in frames, which a training on kept features does "
                "not read; set it to random, or train.cache_features to off"
            )
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}"
            )
        return self
