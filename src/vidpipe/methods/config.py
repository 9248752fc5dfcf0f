"""`methods` in params.yaml: every method's options, by name in CONFIGS. No torch: read by the CLI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from vidpipe.config.section import NotDecisive, OnlyTraining, Section
from vidpipe.errors import VidpipeError

_WithoutLr = NotDecisive(unless=("lr", None))
BaseRate = Annotated[float, OnlyTraining(), _WithoutLr]
BaseBatch = Annotated[int, OnlyTraining(), _WithoutLr]
OF_TEXT = NotDecisive(unless=("head_init", "text"))
"""Mark of what decides with texts only: without, the identity of a training is as it was before."""


def _has_one_place(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("expected one {} where the class name goes, such as 'a video of {}.'")
    return prompt


Prompt = Annotated[
    str, AfterValidator(_has_one_place), Field(examples=["a video of {}.", "a person {}."])
]


class MethodConfig(Section):
    """Fields every method has; a method adds its own. Lives under `methods.<name>` in params.yaml."""

    # What `vidpipe tune` searches unless told otherwise: field -> domain, as `loguniform(1e-4,1e-2)`.
    space: ClassVar[Mapping[str, str]] = {"lr": "loguniform(1e-4,1e-2)"}

    lr: Annotated[float | None, OnlyTraining()] = Field(
        None,
        gt=0,
        description="peak learning rate as it is; null: base_lr x train.batch_size / base_batch_size",
    )
    base_lr: BaseRate = Field(
        3e-4, gt=0, description="where lr is null: for base_batch_size clips a step, linear in them"
    )
    base_batch_size: BaseBatch = Field(64, ge=1, le=65_536, description="clips that base_lr is for")
    weight_decay: Annotated[float, OnlyTraining()] = Field(0.05, ge=0)
    head_dropout: Annotated[float, OnlyTraining()] = Field(0.5, ge=0, lt=1)
    pretrained_lr_scale: Annotated[float | None, OnlyTraining()] = Field(
        None,
        gt=0,
        le=1,
        description="of lr, for trained weights of the backbone; null: 1, and 1/100 for full "
        "fine-tuning of CLIP",
    )
    layer_decay: Annotated[float, OnlyTraining()] = Field(
        1.0, gt=0, le=1, description="of lr, per block from the last to the first"
    )
    head_init: Annotated[Literal["random", "text"], OF_TEXT] = Field(
        "random",
        description="text: the head starts from the class names, by an open_clip model's text tower",
    )
    prompts: Annotated[tuple[Prompt, ...] | None, OnlyTraining(), OF_TEXT] = Field(
        None,
        min_length=1,
        max_length=1000,
        description="what stands around a class name, {}, in its texts; null: ten for actions",
    )

    def peak_lr(self, batch_size: int | None = None) -> float:
        """The peak learning rate for `batch_size` clips a step; None: as many as `base_lr` is for.

        >>> MethodConfig().peak_lr(32), MethodConfig(lr=1e-3).peak_lr(32)
        (0.00015, 0.001)
        """
        if self.lr is not None:
            return self.lr
        return self.base_lr * (batch_size or self.base_batch_size) / self.base_batch_size


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


Channels = Annotated[int, Field(ge=1)]


class STDHAConfig(MethodConfig):
    space: ClassVar = {
        **MethodConfig.space,
        "head_offsets": "choice([-1,1],[-1,-1,1,1],[-1,1,-2,2])",
    }
    head_offsets: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = Field(
        None,
        description="frame offset dt of the first heads, the rest stay at 0; null: [-1, 1]; "
        "a list of lists gives each block (ViT) or stage (Swin) its own",
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
