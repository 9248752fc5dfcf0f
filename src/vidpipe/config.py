"""The schema of params.yaml: the single place where a number of the pipeline is defined.

Read through pydantic in lax mode only (DVC writes `1e-05`, which YAML 1.1 reads as text). The sections
of the input side are in video/config.py and data/config.py; a method's own fields live in the
method's file and are reached through the registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from vidpipe.backbones.config import BackboneConfig
from vidpipe.data.config import DataConfig, SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import MethodConfig
from vidpipe.section import Section
from vidpipe.video.config import ExtractConfig
from vidpipe.video.rendered import SynthConfig


class TrainConfig(Section):
    epochs: int = Field(ge=1)
    steps: int | None = Field(
        None, ge=1, description="optimizer steps in all, in place of epochs (ST-Adapter: 20k)"
    )
    batch_size: int = Field(ge=1, description="clips of one optimizer step, over all workers")
    accumulate: int = Field(1, ge=1, description="parts that batch is computed in, for memory")
    warmup_epochs: float = Field(ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and publish an average of the trained weights"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 autocast on a GPU, fp32 on a CPU; fp16 scales the loss"
    )
    activation_gb: float | None = Field(
        None,
        ge=0,
        description="blocks are recomputed in the backward pass until activations of one worker fit; "
        "0: all blocks; null: none",
    )
    compile: bool = Field(False, description="torch.compile; minutes at the start, bits may differ")
    starts_from: str | None = Field(
        None,
        description="adapter folder to begin with, of the same method on the same weights; its head, "
        "too, where the classes are the same",
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; null: at the end of each epoch"
    )
    storage: str | None = Field(
        None, description="fsspec URL that keeps a copy of checkpoints, such as s3://bucket/runs"
    )
    eval_every: int = Field(1, ge=1, description="epochs between validations")
    num_workers: int = Field(0, ge=0, description="Ray Train workers; 0 trains in this process")
    worker_restarts: int = Field(
        3, ge=0, description="times lost workers are started again, from the last checkpoint"
    )
    cpus_per_worker: int = Field(1, ge=1)
    memory_gb_per_worker: float = Field(2, gt=0, description="refused where not available")
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    threads: int = Field(2, ge=1, description="of torch, per process; changes the last bits")
    loader_workers: int = Field(0, ge=0, description="decoding processes per training worker")
    prefetch: int = Field(2, ge=1, description="batches each loader worker keeps ready")
    shuffle: Literal["full", "shards"] = Field(
        "full", description="shards: in windows of a few shards, for a store read over a network"
    )
    max_bad_reads: float = Field(
        0.01, ge=0, le=1, description="of an epoch's clips; more unreadable ones end the training"
    )
    cache_mb: int = Field(1024, ge=0, description="decoded clips kept in memory, per process")
    seed: int = 0

    @field_validator("use_gpu", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML 1.1 reads yes and no as truth values.
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value

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
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}"
            )
        return self


class EvaluateConfig(Section):
    temporal_clips: int = Field(1, ge=1)
    spatial_crops: Literal[1, 3] = 1
    average: Literal["softmax", "logits"] = Field(
        "softmax", description="what is averaged over the views; the papers' code: softmax"
    )
    use_of_time: bool = Field(
        True, description="also classify the middle view reversed, shuffled and frozen"
    )
    batch_size: int = Field(16, ge=1, description="clips; each brings all its views")
    num_workers: int = Field(0, ge=0, description="Ray workers; 0 evaluates in this process")
    reversed_pairs: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of classes that are each other's time reversal"
    )


PROGRAMS = {"torch_export": ("fp32", "bf16", "fp16"), "onnx": ("fp32", "fp16", "int8")}
"""The precisions that each program format can be written in."""


class ExportConfig(Section):
    parity_clips: int = Field(16, ge=1, description="validation clips the export must agree on")
    tolerance: float = Field(1e-4, gt=0, description="largest |difference of logits|, fp32")
    formats: tuple[Literal["torch_export", "onnx"], ...] = Field(
        ("torch_export",), description="programs to write beside the safetensors"
    )
    precisions: tuple[Literal["bf16", "fp16", "int8"], ...] = Field(
        (),
        description="also write programs in these: bf16 (torch_export), fp16 (both), int8 (onnx: "
        "dynamic quantisation of matrix products)",
    )
    max_top1_loss: float = Field(
        0.02, ge=0, le=1, description="validation top-1 that such a program may lose, as a fraction"
    )
    accuracy_clips: int | None = Field(
        None, ge=1, description="validation clips that is measured on; null: all"
    )
    register_as: str | None = Field("vidpipe", description="MLflow registered model; null: none")
    alias: str = "current"

    @model_validator(mode="after")
    def _possible(self) -> ExportConfig:
        for precision in self.precisions:
            if not any(precision in PROGRAMS[name] for name in self.formats):
                can = [name for name, precisions in PROGRAMS.items() if precision in precisions]
                raise ValueError(
                    f"precisions has {precision}, which is written as {' or '.join(can)}; add that "
                    "to export.formats"
                )
        return self

    def programs(self) -> list[tuple[str, str]]:
        """(format, precision) of every program to write."""
        wanted = ("fp32", *self.precisions)
        return [(f, p) for f in self.formats for p in PROGRAMS[f] if p in wanted]


class TrackingConfig(Section):
    experiment: str = "vidpipe"
    uri: str = Field("sqlite:///mlflow.db", description="MLFLOW_TRACKING_URI overrides it")


class Params(Section):
    """All of params.yaml."""

    synth: SynthConfig = SynthConfig()
    data: DataConfig
    extract: ExtractConfig
    subset: SubsetConfig = SubsetConfig()
    sampling: SamplingConfig
    transform: TransformConfig
    backbone: BackboneConfig
    methods: dict[str, SerializeAsAny[MethodConfig]]
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("methods", mode="before")
    @classmethod
    def _by_registry(cls, blocks: Any) -> Any:
        from vidpipe.methods.registry import METHODS

        if not isinstance(blocks, Mapping):
            return blocks
        parsed: dict[str, MethodConfig] = {}
        for name, block in blocks.items():
            if isinstance(block, MethodConfig):
                parsed[name] = block
                continue
            if name not in METHODS:
                raise VidpipeError(f"methods.{name}: no such method{nearest(name, METHODS)}")
            try:
                parsed[name] = METHODS[name].Config.model_validate(block or {})
            except ValidationError as error:
                raise VidpipeError(
                    explain(error, METHODS[name].Config, f"methods.{name}")
                ) from None
        return parsed

    @model_validator(mode="after")
    def _possible(self) -> Params:
        if self.evaluate.temporal_clips > 1 and self.sampling.strategy == "uniform":
            raise ValueError(
                "evaluate.temporal_clips > 1 needs sampling.strategy dense: uniform sampling covers "
                "the whole video in one clip"
            )
        return self

    def method(self, name: str) -> MethodConfig:
        """The options of method `name`: its block, or its defaults where it has no block."""
        if name in self.methods:
            return self.methods[name]
        from vidpipe.methods.registry import METHODS

        if name not in METHODS:
            raise VidpipeError(f"--method {name}: no such method{nearest(name, METHODS)}")
        return METHODS[name].Config()


def nearest(name: str, valid: Any) -> str:
    """ "; nearest valid name is X", or "; expected one of ..." where nothing is near."""
    from difflib import get_close_matches

    near = get_close_matches(str(name), [str(v) for v in valid], n=1, cutoff=0.5)
    return f"; nearest is {near[0]}" if near else f"; expected one of {', '.join(sorted(valid))}"


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Valid names beside `location`'s last part."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One line: every wrong key's path, what was expected, what was there, and the nearest name."""
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in (prefix, *item["loc"]) if part != "")
        if item["type"] == "extra_forbidden":
            valid = _fields_at(model, item["loc"])
            problems.append(f"{path}: unknown key{nearest(str(item['loc'][-1]), valid)}")
        elif item["type"] == "missing":
            problems.append(f"{path}: missing; it has no default")
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
            problems.append(f"{path}: {message}" if path else message)
        else:
            problems.append(f"{path}: {item['msg']}, got {item['input']!r}")
    return "; ".join(problems)


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`; mappings merge, everything else (lists too) replaces."""
    merged = dict(base)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """`train.epochs=5` -> {"train": {"epochs": 5}}; the value is YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise VidpipeError(f"--set {text}: expected key=value, such as train.epochs=5")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise VidpipeError(f"--set {text}: the value is not valid YAML") from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VidpipeError(
            f"{path}: no such file; run vidpipe in the folder that holds params.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VidpipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise VidpipeError(f"{path}: expected a mapping of sections")
    return content


def load_params(path: Path, overlays: Sequence[Mapping[str, Any]] = ()) -> Params:
    """params.yaml with `overlays` on top, in order, validated as one."""
    raw: Mapping[str, Any] = read_yaml(path)
    for overlay in overlays:
        raw = deep_merge(raw, overlay)
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise VidpipeError(f"{path.name}: {explain(error, Params)}") from None
    except VidpipeError as error:
        raise VidpipeError(f"{path.name}: {error}") from None


def config_hash(*parts: Any) -> str:
    """Short identity of a resolved configuration: the same values give the same twelve letters."""

    def plain(part: Any) -> Any:
        return part.model_dump(mode="json") if isinstance(part, BaseModel) else part

    text = json.dumps([plain(part) for part in parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
