"""The options that every method has, and the marks of theirs. No torch: read by the CLI."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from vidpipe.config.section import NotDecisive, OnlyTraining, Section

_WithoutLr = NotDecisive(unless=("lr", None))
Rate = Annotated[float, Field(gt=0)]
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

    lr: Annotated[Rate | Literal["auto"] | None, OnlyTraining()] = Field(
        None,
        description="peak learning rate as it is; null: base_lr x train.batch_size / base_batch_size; "
        "auto: well below the rate at which the loss rises, found in at most a hundred steps more",
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

    @field_validator("lr", mode="wrap")
    @classmethod
    def _one_line(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Not a line for each form that it is not."""
        try:
            return handler(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise ValueError(f"{problem}, got {reprlib.repr(value)}; auto finds one") from None

    def peak_lr(self, batch_size: int | None = None) -> float:
        """The peak learning rate for `batch_size` clips a step; None: as many as `base_lr` is for. Of
        `auto`, which a training finds, that of null.

        >>> MethodConfig().peak_lr(32), MethodConfig(lr=1e-3).peak_lr(32)
        (0.00015, 0.001)
        """
        if self.lr is not None and self.lr != "auto":
            return self.lr
        return self.base_lr * (batch_size or self.base_batch_size) / self.base_batch_size
