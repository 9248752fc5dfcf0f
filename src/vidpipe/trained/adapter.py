"""Adapter checkpoint: a folder with the trained tensors and all that is needed to rebuild the model.

`adapter.safetensors`: trained tensors only. `config.json`: the card (`trained/card.py`): format version,
method and its options, backbone with the hash of its weights, activation and normalisation, sampling,
transform, class names, versions. No pickle. Version 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vidpipe.backbones.positions import grid_header
from vidpipe.backbones.zoo import Backbone, architecture
from vidpipe.config.messages import explain, nearest
from vidpipe.config.section import OnlyTraining, Section, mark
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import InputForm
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, write_json
from vidpipe.image_size import Size
from vidpipe.methods.registry import VideoModel
from vidpipe.tasks.registry import SINGLE_LABEL, TASKS
from vidpipe.trained.card import ADAPTER, OWN_BACKBONE, TENSORS, Card, read_card
from vidpipe.trained.frozen import refuse_other_weights
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.weights import read_tensors, refuse_mismatch, state_sha256

Options = TypeVar("Options", bound=Section)


def start_from(own: TrainedModel, folder: Path) -> None:
    """Give `own` what adapter `folder` trained; not its head where that is for other classes.

    Raises VidpipeError where the adapter is of another method, other options that change what its
    tensors mean, or another backbone's weights.
    """
    model = own.model
    card = read_card(folder, ADAPTER)
    where = f"train.starts_from: {folder}"
    if card.method != model.name:
        raise VidpipeError(
            f"{where}: an adapter of {card.method}, but {model.name} is to be trained"
        )
    refuse_other_weights(where, card.backbone.weights_sha256, own.backbone)
    options = card.method_config.model_dump(mode="json")
    for name, value in model.config.model_dump(mode="json").items():
        trains = mark(type(model.config).model_fields[name], OnlyTraining)
        if trains is None and options.get(name) != value:
            raise VidpipeError(
                f"{where}: trained with methods.{card.method}.{name} {options.get(name)}, not "
                f"{value}; its tensors mean something else with that"
            )
    tensors = folder / TENSORS[ADAPTER]
    state = read_tensors(tensors)
    if list(card.classes) != own.classes:
        state |= {n: t for n, t in model.adapter_state().items() if n.startswith("head.")}
    model.load_adapter_state(state, str(tensors))


def save_adapter(
    folder: Path,
    trained: TrainedModel,
    extra: dict[str, Any],
    frozen: dict[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint to `folder` as a whole. `extra` goes into config.json under `training`,
    beside the hash of the tensors. `frozen`: the backbone's, where they have to travel along."""
    state = {name: t.cpu().contiguous() for name, t in trained.model.adapter_state().items()}
    if frozen is not None:
        config = trained.backbone.config.model_copy(update={"weights": OWN_BACKBONE})
        own = replace(trained.backbone, config=config, sha256=state_sha256(frozen))
        trained = replace(trained, backbone=own)
    card = Card.of(ADAPTER, trained, training={**extra, "sha256": state_sha256(state)})
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / TENSORS[ADAPTER])
        if frozen is not None:
            header = grid_header(trained.backbone.vit)
            save_file(frozen, temporary / OWN_BACKBONE, metadata=header or None)
        write_json(temporary / "config.json", card.plain())


def load_adapter(
    folder: Path, weights: str | None = None, backbone: Backbone | None = None
) -> TrainedModel:
    """Rebuild a trained model. `weights` overrides where the backbone's weights are found; with
    `backbone`, its frozen tensors are shared and only what this adapter trained is its own.

    Raises VidpipeError when files are missing or corrupt, or the backbone's weights are others than
    those the adapter was trained on.
    """
    return read_card(folder, ADAPTER).build(folder, weights, backbone)


def save(
    model: VideoModel,
    folder: str | Path,
    *,
    classes: Sequence[str],
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    transform: TransformConfig | Mapping[str, Any] | None = None,
    extract: Mapping[str, Any] | None = None,
    task: str = SINGLE_LABEL.name,
    thresholds: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model as an adapter folder, which `vidpipe.load` and the commands predict, evaluate and
    export read.

    The folder holds what was trained and names the backbone's weights by their hash. Weights that no
    file or hub holds, random ones or those of a module in memory, are written beside it.

    Args:
        model: from `vidpipe.create_model` (or `vidpipe.load(...).model`).
        folder: is made, or replaced as a whole.
        classes: names of the classes, in the order of the logits.
        sampling: which frames of a video make a clip, such as `{"strategy": "dense", "stride": 16}`;
            None: uniform.
        transform: of the input, as in params.yaml; None: `model.form` only.
        extract: `{"short_side": pixels, "fps": rate or None}` of the decoded frames it learned on; None:
            a short side in proportion, and each video's own rate.
        task: `"multilabel"` where a clip may have several classes or none.
        thresholds: (C,) with that task, the probability from which on a class is said; None: 0.5.
        training: what else is worth recording of the training.

    Returns:
        The folder.

    Raises:
        VidpipeError: where the names are not as many as the classes, options do not fit the model, or
            it was not made by `create_model`.

    Example:
        >>> import tempfile, vidpipe
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = vidpipe.create_model(
        ...     "aim", "vit_still_patch12_48", num_classes=2, num_frames=8, weights=WEIGHTS
        ... )
        >>> dense = {"strategy": "dense", "stride": 16}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = save(model, f"{folder}/out", classes=["left", "right"], sampling=dense)
        ...     sorted(file.name for file in out.iterdir())
        ['adapter.safetensors', 'config.json']
    """
    backbone, form = getattr(model, "backbone", None), getattr(model, "form", None)
    if not isinstance(backbone, Backbone) or not isinstance(form, InputForm):
        raise VidpipeError(
            f"save: this {type(model).__name__} does not know its backbone; make it by "
            "vidpipe.create_model"
        )
    if task not in TASKS:
        raise VidpipeError(f"task {task}: no such task{nearest(task, TASKS)}")
    if isinstance(classes, str) or len(classes) != model.head.out_features:
        got = "a text" if isinstance(classes, str) else f"{len(classes)} names"
        raise VidpipeError(f"classes: {got}, but the model has {model.head.out_features} classes")
    trained = TrainedModel(
        model,
        backbone,
        list(classes),
        _options(
            SamplingConfig, "sampling", sampling, strategy="uniform", num_frames=model.num_frames
        ),
        _options(TransformConfig, "transform", transform, **vars(form)),
        dict(extract or {}),
        TASKS[task],
        None if thresholds is None else list(thresholds),
    )
    target, config = Path(folder), backbone.config
    known = config.hub_tag is not None or Path(config.weights).is_file()
    frozen = None if known else frozen_state(backbone, form.size)
    save_adapter(target, trained, dict(training or {}), frozen)
    return target


def _options(
    schema: type[Options], what: str, given: Options | Mapping[str, Any] | None, **own: Any
) -> Options:
    """`given` as `schema` has it, over the model's `own` values; another size or number is refused."""
    plain = given.model_dump() if isinstance(given, BaseModel) else dict(given or {})
    try:
        found = schema.model_validate({**own, **plain})
    except ValidationError as error:
        raise VidpipeError(explain(error, schema, what)) from None
    for key in own.keys() - {"strategy"}:
        if (value := getattr(found, key)) != own[key]:
            raise VidpipeError(f"{what}.{key}: {value}, but the model was made for {own[key]}")
    return found


def frozen_state(backbone: Backbone, size: Size) -> dict[str, Tensor]:
    """The image model's own tensors. Raises VidpipeError where its name would not rebuild it."""
    with torch.device("meta"):
        expected = architecture(backbone.config, size).state_dict()
    state = {n: t for n, t in backbone.vit.state_dict().items() if n in expected}
    refuse_mismatch(f"save: the backbone is no {backbone.config.name}", expected, state)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
