"""The model that parameters describe, before its training."""

from __future__ import annotations

from pathlib import Path

from vidpipe.backbones.input_card import completed
from vidpipe.backbones.zoo import load_backbone
from vidpipe.data.model_input import InputForm
from vidpipe.methods.create import create_on
from vidpipe.params import Params
from vidpipe.tasks.registry import TASKS
from vidpipe.trained.adapter import start_from
from vidpipe.trained.card import FRAMES
from vidpipe.trained.trained_model import TrainedModel


def new_model(params: Params, method: str, classes: list[str]) -> TrainedModel:
    """The model that `params` describe, before its training. Its `transform` leaves nothing to the card
    of the backbone's weights."""
    transform = completed(params.transform, params.backbone)
    form = InputForm.of(transform)
    backbone = load_backbone(params.backbone, form.size)
    config, frames = params.method(method), params.sampling.num_frames
    model = create_on(backbone, form, method, len(classes), frames, config, classes)
    extract = {key: getattr(params.extract, key) for key in FRAMES}
    task = TASKS[params.data.task]
    own = TrainedModel(model, backbone, classes, params.sampling, transform, extract, task)
    if params.train.starts_from is not None:
        start_from(own, Path(params.train.starts_from))
    return own
