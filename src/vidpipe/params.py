"""The schema of params.yaml: the single place where a number of the pipeline is defined.

Read through pydantic in lax mode only (DVC writes `1e-05`, which YAML 1.1 reads as text). Each section
stands beside its code (`training/config.py`, `data/config.py`, `methods/config.py`, ...), and none of
them needs torch: a typo is answered before it is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from vidpipe.backbones.config import BackboneConfig
from vidpipe.config.messages import explain, nearest
from vidpipe.config.overlay import deep_merge, read_yaml
from vidpipe.config.section import NotDecisive, Section
from vidpipe.data.config import DataConfig, SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.evaluation.config import EvaluateConfig
from vidpipe.export.config import ExportConfig
from vidpipe.methods.config import CONFIGS, MethodConfig
from vidpipe.study.config import StudyConfig
from vidpipe.training.config import TrainConfig
from vidpipe.video.config import ExtractConfig, SynthConfig

STAGES: dict[str, tuple[str, ...]] = {
    "synth": ("synth",),
    "extract": ("data", "extract"),
    "train": ("subset", "sampling", "transform", "backbone", "methods", "train"),
    "evaluate": ("evaluate",),
    "export": ("export",),
    "report": ("pipeline",),
    "study": (
        *("study", "pipeline", "data", "subset", "sampling", "transform", "backbone", "methods"),
        *("train", "evaluate"),
    ),
}
"""The sections that decide what a stage makes, beside the files that it reads; of `methods` only the
trained method's block."""


SCHEMES = (
    *("sqlite", "postgresql", "mysql", "mssql", "file", "http", "https"),
    *("databricks", "databricks-uc", "uc"),
)
"""Of stores that MLflow knows by itself."""


def _plugin_schemes() -> set[str]:
    return {entry.name for entry in entry_points(group="mlflow.tracking_store")}


class TrackingConfig(Section):
    experiment: str = "vidpipe"
    uri: str = Field("sqlite:///mlflow.db", description="MLFLOW_TRACKING_URI overrides it")
    required: bool = Field(
        False,
        description="whether a command refuses to start while MLflow does not answer, and fails in "
        "the end where it lacks part of the run; false: it warns, and `vidpipe sync` sends the rest",
    )

    @field_validator("uri")
    @classmethod
    def _known(cls, uri: str) -> str:
        scheme, found, _ = uri.partition("://")
        # A driver may be named, too: postgresql+psycopg2.
        kind = scheme.partition("+")[0]
        # Plugins are looked for last: that takes longer than all the rest of the schema.
        if found and kind not in SCHEMES and kind not in _plugin_schemes():
            raise ValueError(
                f"no such kind of store: {scheme}{nearest(scheme, SCHEMES)}; "
                "such as sqlite:///mlflow.db or http://host:5000"
            )
        return uri


class PipelineConfig(Section):
    methods: tuple[str, ...] = Field(
        (), description="what `dvc repro` trains, evaluates, exports and compares, in this order"
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for place, name in enumerate(names):
            if name not in CONFIGS:
                raise ValueError(f"{name}: no such method{nearest(name, CONFIGS)}")
            if name in names[:place]:
                raise ValueError(f"{name} is named twice")
        return names


class Params(Section):
    """All of params.yaml."""

    pipeline: PipelineConfig = PipelineConfig()
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
    study: StudyConfig = StudyConfig()
    tracking: Annotated[TrackingConfig, NotDecisive()] = TrackingConfig()

    @field_validator("methods", mode="before")
    @classmethod
    def _by_registry(cls, blocks: Any) -> Any:
        if not isinstance(blocks, Mapping):
            return blocks
        parsed: dict[str, MethodConfig] = {}
        for name, block in blocks.items():
            if isinstance(block, MethodConfig):
                parsed[name] = block
                continue
            if name not in CONFIGS:
                raise VidpipeError(f"methods.{name}: no such method{nearest(name, CONFIGS)}")
            try:
                parsed[name] = CONFIGS[name].model_validate(block or {})
            except ValidationError as error:
                raise VidpipeError(explain(error, CONFIGS[name], f"methods.{name}")) from None
        return parsed

    @model_validator(mode="after")
    def _possible(self) -> Params:
        if self.evaluate.temporal_clips > 1 and self.sampling.strategy == "uniform":
            raise ValueError(
                "evaluate.temporal_clips > 1 needs sampling.strategy dense: uniform sampling covers "
                "the whole video in one clip"
            )
        several = self.data.task in ("multilabel", "detection")
        if self.data.task == "detection" and self.train.cache_features != "off":
            raise ValueError(
                "train.cache_features keeps features of whole clips, and data.task detection has boxes; "
                "set it to off"
            )
        if several and self.train.balance == "sample":
            raise ValueError(
                f"train.balance sample draws by the one class of a clip, and data.task {self.data.task} "
                "has several; use weights"
            )
        if self.train.focal_gamma and not several:
            raise ValueError(
                f"train.focal_gamma {self.train.focal_gamma:g} is of the loss of several labels, "
                f"not of {self.data.task}; set it to 0"
            )
        return self

    def method(self, name: str) -> MethodConfig:
        """The options of method `name`: its block, or its defaults where it has no block."""
        if name in self.methods:
            return self.methods[name]
        if name not in CONFIGS:
            raise ArgumentError("method", f" {name}: no such method{nearest(name, CONFIGS)}")
        return CONFIGS[name]()


def deciding_sections(params: Params, stage: str, method: str = "") -> dict[str, Section]:
    """Of `stage` (a key of STAGES), what `config_hash` makes its identity of."""
    return {
        name: params.method(method) if name == "methods" else getattr(params, name)
        for name in STAGES[stage]
    }


def load_params(path: Path, overlays: Sequence[Mapping[str, Any]] = ()) -> Params:
    """params.yaml with `overlays` on top, in order, validated as one."""
    raw: Mapping[str, Any] = read_yaml(path)
    for overlay in overlays:
        raw = deep_merge(raw, overlay)
    try:
        return parse_params(raw)
    except VidpipeError as error:
        raise VidpipeError(f"{path.name}: {error}") from None


def parse_params(raw: Mapping[str, Any]) -> Params:
    """Plain values as Params. Raises VidpipeError: one line with every wrong key."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise VidpipeError(explain(error, Params)) from None
