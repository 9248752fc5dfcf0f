"""Adapter checkpoint: a folder with the trained tensors and all that is needed to rebuild the model.

`adapter.safetensors`: trained tensors only. `config.json`: format version, method and its options,
backbone with the hash of its weights, activation and normalisation, sampling, transform, class
names, versions. No pickle. Version 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, load_backbone
from vidpipe.config.section import OnlyTraining, mark
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.methods.config import MethodConfig
from vidpipe.methods.create import build_on, create_on
from vidpipe.methods.registry import METHODS, VideoModel
from vidpipe.params import Params
from vidpipe.version import __version__

FORMAT, VERSION = "vidpipe-adapter", 1


@dataclass
class TrainedModel:
    """A model in eval mode with what travels beside its weights."""

    model: VideoModel
    backbone: Backbone
    classes: list[str]
    sampling: SamplingConfig
    transform: TransformConfig
    extract: dict[str, Any] = field(default_factory=dict)
    """`short_side` and `fps` of the frames it learned on; empty where that is not known."""


FRAMES = ("short_side", "fps")


def new_model(params: Params, method: str, classes: list[str]) -> TrainedModel:
    """The model that `params` describe, before its training."""
    backbone = load_backbone(params.backbone, params.transform.size)
    size, frames = params.transform.size, params.sampling.num_frames
    config = params.method(method)
    model = create_on(backbone, size, method, len(classes), frames, config)
    extract = {key: getattr(params.extract, key) for key in FRAMES}
    own = TrainedModel(model, backbone, classes, params.sampling, params.transform, extract)
    if params.train.starts_from is not None:
        start_from(own, Path(params.train.starts_from))
    return own


def start_from(own: TrainedModel, folder: Path) -> None:
    """Give `own` what adapter `folder` trained; not its head where that is for other classes.

    Raises VidpipeError where the adapter is of another method, other options that change what its
    tensors mean, or another backbone's weights.
    """
    source, model = folder / "config.json", own.model
    card = read_card(source, FORMAT, VERSION)
    try:
        method, options = card["method"], dict(card["method_config"])
        weights, classes = card["backbone"]["weights_sha256"], list(card["classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise VidpipeError(f"{source}: not a complete adapter description ({error})") from None
    where = f"train.starts_from: {folder}"
    if method != model.name:
        raise VidpipeError(f"{where}: an adapter of {method}, but {model.name} is to be trained")
    _refuse_other_weights(where, weights, own.backbone)
    for name, value in model.config.model_dump(mode="json").items():
        trains = mark(type(model.config).model_fields[name], OnlyTraining)
        if trains is None and options.get(name) != value:
            raise VidpipeError(
                f"{where}: trained with methods.{method}.{name} {options.get(name)}, not {value}; "
                "its tensors mean something else with that"
            )
    tensors = folder / "adapter.safetensors"
    state = read_tensors(tensors)
    if classes != own.classes:
        state |= {n: t for n, t in model.adapter_state().items() if n.startswith("head.")}
    model.load_adapter_state(state, str(tensors))


def save_adapter(folder: Path, trained: TrainedModel, extra: dict[str, Any]) -> None:
    """Write the checkpoint to `folder` as a whole. `extra` goes into config.json under `training`."""
    model = trained.model
    state = {name: t.cpu().contiguous() for name, t in model.adapter_state().items()}
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / "adapter.safetensors")
        write_json(
            temporary / "config.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "vidpipe": __version__,
                "method": model.name,
                "method_config": model.config.model_dump(mode="json"),
                "backbone": {
                    **trained.backbone.card(),
                    "weights": trained.backbone.config.weights,
                },
                "sampling": trained.sampling.model_dump(mode="json"),
                "transform": trained.transform.model_dump(mode="json"),
                "extract": trained.extract,
                "classes": trained.classes,
                "training": extra,
            },
        )


def read_card(source: Path, form: str, version: int) -> dict[str, Any]:
    """A model folder's config.json. Raises VidpipeError where it is of another format or version."""
    card: dict[str, Any] = read_json(source)
    if card.get("format") != form or card.get("version") != version:
        raise VidpipeError(
            f"{source}: format {card.get('format')!r} version {card.get('version')!r}, expected "
            f"{form!r} version {version}"
        )
    return card


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Raises VidpipeError where the file is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise VidpipeError(f"{file}: no such file") from None
    except Exception as error:  # safetensors raises its own type for every corruption
        raise VidpipeError(f"{file}: not a readable safetensors file ({error})") from None


def load_adapter(
    folder: Path, weights: str | None = None, backbone: Backbone | None = None
) -> TrainedModel:
    """Rebuild a trained model. `weights` overrides where the backbone's weights are found; with
    `backbone`, its frozen tensors are shared and only what this adapter trained is its own.

    Raises VidpipeError when files are missing or corrupt, or the backbone's weights are others than
    those the adapter was trained on.
    """
    source = folder / "config.json"
    card = read_card(source, FORMAT, VERSION)
    try:
        recorded = card["backbone"]
        backbone_config = BackboneConfig(
            source=recorded["source"],
            name=recorded["name"],
            weights=weights or recorded["weights"],
        )
        method = card["method"]
        method_config: MethodConfig = METHODS[method].Config.model_validate(card["method_config"])
        sampling = SamplingConfig.model_validate(card["sampling"])
        transform = TransformConfig.model_validate(card["transform"])
        classes = list(card["classes"])
        extract = dict(card.get("extract", {}))
    except (KeyError, TypeError, ValidationError) as error:
        raise VidpipeError(f"{source}: not a complete adapter description ({error})") from None
    if backbone is None:
        backbone = load_backbone(backbone_config, transform.size)
    else:
        backbone = _shared(backbone, transform.size, folder)
    _refuse_other_weights(str(folder), recorded["weights_sha256"], backbone)
    frames, size = sampling.num_frames, transform.size
    model = build_on(backbone, size, method, len(classes), frames, method_config)
    for name in model.carried():  # may be a part of a backbone that others use
        owner, _, leaf = name.rpartition(".")
        parameter = getattr(module := model.get_submodule(owner), leaf)
        setattr(module, leaf, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    tensors = folder / "adapter.safetensors"
    state = read_tensors(tensors)
    model.load_adapter_state(state, str(tensors))
    model.eval()
    return TrainedModel(model, backbone, classes, sampling, transform, extract)


def _refuse_other_weights(where: str, recorded: str, backbone: Backbone) -> None:
    if backbone.sha256 != recorded:
        raise VidpipeError(
            f"{where}: trained on weights {recorded[:12]}, but {backbone.config.weights} has "
            f"{backbone.sha256[:12]}; name the right backbone.weights"
        )


def _shared(backbone: Backbone, size: int, folder: Path) -> Backbone:
    """The same tensors in modules of their own, so that a method may change the modules."""
    grid = cast(Any, backbone.vit.patch_embed).img_size
    if grid is not None and tuple(grid) != (size, size):
        raise VidpipeError(
            f"{folder}: made for {size} px, but the backbone it should share is for {grid[0]} px"
        )
    memo: dict[int, Any] = {id(p): p for p in backbone.vit.parameters()}
    return replace(backbone, vit=copy.deepcopy(backbone.vit, memo))
