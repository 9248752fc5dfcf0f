"""What every method's block in params.yaml has. Apart from the models, so that it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field


class MethodConfig(BaseModel):
    """Fields every method has; a method adds its own. Lives under `methods.<name>` in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What `vidpipe tune` searches unless told otherwise: field -> domain, as in `--space`.
    space: ClassVar[Mapping[str, str]] = {"lr": "loguniform(1e-4,1e-2)"}

    lr: float = Field(3e-4, gt=0, description="peak learning rate at `train.batch_size`")
    weight_decay: float = Field(0.05, ge=0)
    head_dropout: float = Field(0.5, ge=0, lt=1)
    pretrained_lr_scale: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of lr, for trained weights of the backbone; null: 1, and 1/100 for full "
        "fine-tuning of CLIP",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="of lr, per block from the last to the first"
    )
