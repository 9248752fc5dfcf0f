"""`methods` in params.yaml: every method's options, by name in CONFIGS. No torch: read by the CLI."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from vidpipe.config.messages import explain
from vidpipe.config.section import AbsentAtDefault, OnlyTraining, Section
from vidpipe.errors import VidpipeError
from vidpipe.methods.method_config import BaseBatch, BaseRate
from vidpipe.methods.method_config import MethodConfig as MethodConfig


class LinearProbeConfig(MethodConfig):
    space: ClassVar = {"lr": "loguniform(1e-3,1e-1)"}
    base_lr: BaseRate = Field(1e-2, gt=0)  # a head alone takes far more than what adapters take


class ZeroShotConfig(MethodConfig):
    """What is about training means nothing here."""

    space: ClassVar = {}
    head_dropout: Annotated[float, OnlyTraining()] = Field(0.0, ge=0, lt=1)
    head_init: Literal["text"] = "text"  # type: ignore[assignment]


KernelSize = Annotated[int, Field(ge=1, le=63)]
Position = Literal["before_attn", "after_attn", "before_mlp", "after_mlp"]


class STAdapterConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "bottleneck_ratio": "choice(0.125,0.25,0.5)",
        "positions": "choice([before_attn],[before_mlp],[before_attn,before_mlp])",
    }
    base_lr: BaseRate = Field(5e-4, gt=0)
    base_batch_size: BaseBatch = Field(128, ge=1, le=65_536)
    weight_decay: float = Field(1e-2, ge=0)
    bottleneck_ratio: float = Field(0.5, gt=0, le=4, description="adapter width / backbone width")
    kernel_size: tuple[KernelSize, KernelSize, KernelSize] = (3, 1, 1)
    positions: tuple[Position, ...] = Field(("before_attn",), min_length=1)
    blocks: tuple[int, ...] | dict[Position, tuple[int, ...]] | None = Field(
        None, description="adapted blocks; null means all; a mapping gives each position its own"
    )

    @model_validator(mode="before")
    @classmethod
    def _positions_of_a_mapping(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("blocks"), Mapping):
            return {"positions": tuple(values["blocks"]), **values}
        return values

    @model_validator(mode="after")
    def _one_placement(self) -> STAdapterConfig:
        if isinstance(self.blocks, dict) and set(self.blocks) != set(self.positions):
            raise ValueError(
                f"blocks names the positions {sorted(self.blocks)}, but positions are "
                f"{sorted(self.positions)}; leave positions out"
            )
        return self

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, kernel: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(k % 2 == 0 for k in kernel):
            raise ValueError("expected three odd sizes (time, height, width), such as [3, 1, 1]")
        return kernel

    def placements(self, depth: int) -> list[tuple[int, Position]]:
        """(block, position) of every adapter, in the order they are made."""
        if isinstance(self.blocks, dict):
            at = self.blocks
            indices = sorted({index for blocks in at.values() for index in blocks})
            return [(i, p) for i in indices for p in self.positions if i in at[p]]
        blocks = range(depth) if self.blocks is None else self.blocks
        return [(i, p) for i in blocks for p in self.positions]


EmbeddedAt = Annotated[
    Literal["input", "first_adapted"],
    AbsentAtDefault(),
    Field(
        description="where tokens learn their frame: at the input, as the paper's code, or just before "
        "the first adapted block, so that all below it stays frozen (`train.cache_features`)"
    ),
]


class AIMConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "bottleneck_ratio": "choice(0.125,0.25,0.5)",
        "scale": "uniform(0.25,1)",
        "drop_path": "choice(0,0.1,0.2)",
    }
    bottleneck_ratio: float = Field(0.25, gt=0, le=4, description="adapter width / backbone width")
    scale: float = Field(0.5, description="weight s of the MLP adapter (the SSv2 configs use 1)")
    num_temporal_adapters: Literal[1, 2] = Field(
        1, description="2 adds an adapter before the temporal attention (SSv2)"
    )
    drop_path: Annotated[float, OnlyTraining()] = Field(
        0.2, ge=0, lt=1, description="last block's rate; linear from 0"
    )
    temporal: bool = Field(
        True, description="false: spatial adaptation only (Table 1), order-blind"
    )
    joint: bool = Field(True, description="false: no MLP adapter (Table 1)")
    blocks: tuple[int, ...] | None = Field(
        None, description="adapted blocks; null means all (Table 7)"
    )
    temporal_embedding_at: EmbeddedAt = "input"


Channels = Annotated[int, Field(ge=1)]


class OffsetBudget(Section):
    """What a search of head offsets may use."""

    share: float = Field(
        1 / 3, ge=0, le=1, description="of all heads, at most, that look at other frames"
    )
    reach: int = Field(2, ge=1, le=64, description="largest |dt|, frames")


class STDHAConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "head_offsets": "choice([-1,1],[-1,-1,1,1],[-1,1,-2,2])",
    }
    head_offsets: (
        tuple[int, ...] | tuple[tuple[int, ...], ...] | Literal["auto"] | OffsetBudget | None
    ) = Field(
        None,
        description="frame offset dt of the first heads, the rest stay at 0; null: [-1, 1]; "
        "a list of lists gives each block (ViT) or stage (Swin) its own; auto finds one for each head "
        "of each block, within {share: 0.33, reach: 2} or another budget",
    )
    channel_offsets: tuple[tuple[Channels, int], ...] | None = Field(
        None, description="(channels, dt) groups covering the width, in place of head_offsets"
    )
    shift_ratio: float | None = Field(
        None,
        gt=0,
        le=1,
        description="part of every head's channels to shift, in place of whole heads (Table 1a)",
    )
    shifted: Literal["kv", "qkv", "cls"] = Field(
        "kv", description="what comes from other frames: K and V, also Q, or only the class token"
    )
    blocks: Annotated[tuple[int, ...] | None, AbsentAtDefault()] = Field(
        None,
        description="adapted blocks, whose heads are shifted; null: all. Where head_offsets has a list "
        "for each block, that says which are shifted",
    )
    temporal_embedding_at: EmbeddedAt = "input"

    @field_validator("head_offsets", mode="wrap")
    @classmethod
    def _one_line(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Not a line for each form that it is not."""
        try:
            if isinstance(value, Mapping):
                return OffsetBudget.model_validate(value)
            return handler(value)
        except ValidationError as error:
            if isinstance(value, Mapping):
                raise ValueError(explain(error, OffsetBudget)) from None
            if any(item["type"] == "value_error" for item in error.errors()):
                raise
            raise ValueError(
                "expected offsets such as [-1, 1], a list of them for each block, auto, or a budget "
                f"such as {{share: 0.25, reach: 3}}, got {reprlib.repr(value)}"
            ) from None

    @property
    def searched(self) -> OffsetBudget | None:
        """The budget of the search that `head_offsets` asks for; None: they are given."""
        if self.head_offsets == "auto":
            return OffsetBudget()
        return self.head_offsets if isinstance(self.head_offsets, OffsetBudget) else None


AdapterName = Literal[
    "attn_in", "attn_in_q", "attn_in_k", "attn_in_v", "attn_out", "mlp_in", "mlp_out"
]

QKV: tuple[AdapterName, ...] = ("attn_in_q", "attn_in_k", "attn_in_v")


class ZeroI2VConfig(STDHAConfig):
    space: ClassVar = {
        **STDHAConfig.space,
        "bottleneck_ratio": "choice(0.125,0.25,0.5)",
    }
    bottleneck_ratio: float = Field(0.25, gt=0, le=4, description="adapter width / backbone width")
    scale: float = Field(1.0, description="weight s of every adapter")
    adapter_dropout: Annotated[float, OnlyTraining()] = Field(0.0, ge=0, lt=1)
    adapters: tuple[AdapterName, ...] = Field(
        ("attn_in", "attn_out", "mlp_in", "mlp_out"),
        description="4 for K400, 3 without mlp_out, 6 with attn_in_q/k/v for attn_in; [] is merged",
    )
    activation: Literal["none", "gelu"] = Field(
        "none", description="gelu is Table 2's rival: it learns as well and cannot be merged"
    )

    @field_validator("adapters")
    @classmethod
    def _one_input(cls, names: tuple[AdapterName, ...]) -> tuple[AdapterName, ...]:
        if "attn_in" in names and set(QKV) & set(names):
            raise ValueError("expected attn_in or attn_in_q/k/v, not both")
        return names


class FineTuneConfig(MethodConfig):
    space: ClassVar = {
        "lr": "loguniform(1e-5,1e-3)",
        "layer_decay": "choice(0.65,0.8,1)",
    }
    architecture: Literal["space_only", "divided", "shift"] = "space_only"


class PartialConfig(FineTuneConfig):
    space: ClassVar = {"lr": "loguniform(1e-4,1e-2)", "num_blocks": "choice(1,2,4)"}
    num_blocks: int = Field(1, ge=1, description="last blocks trained, with the final norm")


class TemporalFineTuneConfig(FineTuneConfig):
    architecture: Literal["divided", "shift"] = "divided"  # type: ignore[assignment]


class TemporalHeadsConfig(STDHAConfig):
    merged: bool = False
    """True for what `merge` returns: no differences are left to add."""


Target = Literal["q", "k", "v", "o", "up", "down"]


class LoRAConfig(STDHAConfig):
    space: ClassVar = {
        **STDHAConfig.space,
        "rank": "choice(16,64,192)",
    }
    rank: int = Field(192, ge=1, le=4096, description="the paper uses 192 and 128 on ViT-B")
    scale: float = Field(1.0, description="weight s of the update (alpha / rank elsewhere)")
    targets: tuple[Target, ...] = Field(
        ("q", "k", "v", "o"),
        description="weights with an update: query, key, value, output, MLP up, MLP down; [] is merged",
    )


class PromptTuningConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "num_tokens": "choice(8,32,128)",
    }
    num_tokens: int = Field(128, gt=0, le=4096, description="learned tokens a block")


class AttentionalPoolingConfig(MethodConfig):
    pass


class AttentiveProbeConfig(MethodConfig):
    space: ClassVar = {"lr": "loguniform(1e-4,5e-3)", "weight_decay": "choice(0.01,0.1,0.4,0.8)"}
    head_dropout: Annotated[float, OnlyTraining()] = Field(0.0, ge=0, lt=1)
    num_blocks: int = Field(3, ge=0, le=64, description="self-attention blocks before the query")
    mlp_ratio: float = Field(
        4.0, gt=0, le=16, description="hidden width of an MLP / backbone width"
    )


class Side4VideoConfig(MethodConfig):
    space: ClassVar = {**MethodConfig.space, "side_width": "choice(128,192,320)"}
    head_dropout: Annotated[float, OnlyTraining()] = Field(0.0, ge=0, lt=1)
    weight_decay: Annotated[float, OnlyTraining()] = Field(0.15, ge=0)
    side_width: int = Field(
        320, ge=1, le=4096, description="channels of the side network; the paper's for ViT-B/16"
    )
    mlp_ratio: float = Field(4.0, gt=0, le=16, description="hidden width of an MLP / side_width")


class EVLConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "num_layers": "choice(1,2,4)",
        "mlp_dropout": "uniform(0,0.5)",
    }
    num_layers: int = Field(4, ge=1, description="decoder layers; the last so many blocks are read")
    mlp_ratio: float = Field(
        4.0, gt=0, le=16, description="hidden width of a decoder MLP / backbone width"
    )
    mlp_dropout: Annotated[float, OnlyTraining()] = Field(0.5, ge=0, lt=1)
    temporal_conv: bool = Field(True, description="depthwise convolution over 3 frames")
    temporal_embedding: bool = Field(True, description="one vector a frame; fixes the frame number")
    temporal_cross_attention: bool = Field(
        True, description="where the patches of a frame attend to in the frames beside it"
    )


CONFIGS: dict[str, type[MethodConfig]] = {
    "linear_probe": LinearProbeConfig,
    "st_adapter": STAdapterConfig,
    "aim": AIMConfig,
    "zeroi2v": ZeroI2VConfig,
    "full_finetune": FineTuneConfig,
    "partial": PartialConfig,
    "bitfit": FineTuneConfig,
    "temporal_finetune": TemporalFineTuneConfig,
    "temporal_heads": TemporalHeadsConfig,
    "lora": LoRAConfig,
    "prompt_tuning": PromptTuningConfig,
    "attentional_pooling": AttentionalPoolingConfig,
    "evl": EVLConfig,
    "attentive_probe": AttentiveProbeConfig,
    "side4video": Side4VideoConfig,
    "zero_shot": ZeroShotConfig,
}
"""What `methods.<name>` may hold; `registry.METHODS` has the models."""


def channels(width: int, ratio: float, option: str) -> int:
    """`ratio` of the backbone's `width`, rounded. Raises VidpipeError where no channel is left."""
    count = round(width * ratio)
    if count == 0:
        raise VidpipeError(
            f"{option}: {ratio:g} of the width {width} leaves no channel; the least is {1 / width:.2g}"
        )
    return count
