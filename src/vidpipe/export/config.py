"""`export` in params.yaml. No torch: read by the CLI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vidpipe.config.section import NotDecisive, Section

CHAMPION = "champion"
"""The alias of the version that is in use."""
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
    alias: str = Field(
        "candidate",
        description="of the version that was exported last; `vidpipe promote` moves champion",
    )
    margin: Annotated[float, NotDecisive()] = Field(
        0.02,
        ge=0,
        le=1,
        description="validation top-1 (of several labels, mAP) that a promoted candidate may have less "
        "than the champion, at the low end of the paired 95 % interval, as a fraction",
    )

    @field_validator("alias")
    @classmethod
    def _not_the_champion(cls, alias: str) -> str:
        if alias == CHAMPION:
            raise ValueError(f"{CHAMPION} is what `vidpipe promote` moves; expected another name")
        return alias

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
