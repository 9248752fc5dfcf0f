"""`evaluate` in params.yaml. No torch: read by the CLI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vidpipe.config.section import AbsentAtDefault, NotDecisive, Section

Seconds = Annotated[float, Field(gt=0, le=3600)]


class TimelineConfig(Section):
    """Windows over a whole file and how they are merged; of data sets whose rows are spans."""

    window_s: Seconds | None = Field(None, description="null: the median of the training spans")
    step_s: Seconds | None = Field(None, description="null: a quarter of a window")
    smoothing_s: float = Field(0.0, ge=0, le=3600, description="windows within it are averaged")
    threshold: float | None = Field(
        None, ge=0, le=1, description="null: the likeliest class; of several labels, their own"
    )
    min_length_s: float = Field(0.0, ge=0, le=3600, description="shorter stretches are left out")


class EvaluateConfig(Section):
    temporal_clips: int = Field(1, ge=1, le=1000)
    spatial_crops: Literal[1, 3] = 1
    average: Literal["softmax", "logits"] = Field(
        "softmax", description="what is averaged over the views; the papers' code: softmax"
    )
    use_of_time: bool = Field(
        True, description="also classify the middle view reversed, shuffled and frozen"
    )
    timeline: Annotated[TimelineConfig, AbsentAtDefault()] = TimelineConfig()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 autocast on a GPU, exact fp32 on a CPU; also of `predict`"
    )
    loader_workers: Annotated[int | None, NotDecisive()] = Field(
        None, ge=0, description="decoding processes; null: some beside a GPU, none on a CPU"
    )
    batch_size: Annotated[int, NotDecisive()] = Field(
        16, ge=1, le=4096, description="clips; each brings all its views"
    )
    num_workers: Annotated[int, NotDecisive()] = Field(
        0, ge=0, le=4096, description="Ray workers; 0 evaluates in this process"
    )
    reversed_pairs: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of classes that are each other's time reversal"
    )
