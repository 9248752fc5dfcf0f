"""What every method's block in params.yaml has. Apart from the models, so that it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from vidpipe.config.section import OnlyTraining, Section


class MethodConfig(Section):
    """Fields every method has; a method adds its own. Lives under `methods.<name>` in params.yaml."""

    # What `vidpipe tune` searches unless told otherwise: field -> domain, as in `--space`.
    space: ClassVar[Mapping[str, str]] = {"lr": "loguniform(1e-4,1e-2)"}

    lr: Annotated[float, OnlyTraining()] = Field(
        3e-4, gt=0, description="peak learning rate at `train.batch_size`"
    )
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
