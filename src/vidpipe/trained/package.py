"""Model package: the deployable model, and the proof that it is the one that was trained.

`model.safetensors`: every tensor of the inference model. `config.json`: how to rebuild it, with
preprocessing and class names. `parity.json`: the proof, one row a file. `model*.pt2`, `model*.onnx`:
programs (`programs.py`). `MODEL_CARD.md`: for people. Version 1. Reading one needs torch, timm (with
what it needs itself) and pydantic.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, architecture
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.files import read_json
from vidpipe.methods.create import build_on
from vidpipe.methods.registry import METHODS
from vidpipe.trained.adapter import FORMAT as ADAPTER_FORMAT
from vidpipe.trained.adapter import TrainedModel, load_adapter, read_card, read_tensors
from vidpipe.weights import refuse_mismatch

FORMAT, VERSION = "vidpipe-model", 1


def load_package(folder: Path) -> TrainedModel:
    """The exported model in eval mode, with what travels beside it. Needs no other weights file.

    Raises VidpipeError when files are missing, corrupt or of another format.
    """
    source = folder / "config.json"
    card = read_card(source, FORMAT, VERSION)
    try:
        known = card["backbone"]
        config = BackboneConfig(source=known["source"], name=known["name"], weights="none")
        method = card["method"]
        method_config = METHODS[method].Config.model_validate(card["method_config"])
        sampling = SamplingConfig.model_validate(card["sampling"])
        transform = TransformConfig.model_validate(card["transform"])
        classes = [str(name) for name in card["classes"]]
        extract = dict(card.get("extract", {}))
        facts = (known["weights_sha256"], known["activation"])
        normalisation = (tuple(known["mean"]), tuple(known["std"]))
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise VidpipeError(f"{source}: not a complete description of a model ({reason})") from None
    vit = architecture(config, transform.size)
    backbone = Backbone(vit, config, *facts, *normalisation)
    frames, size = sampling.num_frames, transform.size
    model = build_on(backbone, size, method, len(classes), frames, method_config)
    tensors = folder / "model.safetensors"
    state = read_tensors(tensors)
    refuse_mismatch(str(tensors), model.state_dict(), state)
    model.load_state_dict(state)
    return TrainedModel(model.eval(), backbone, classes, sampling, transform, extract)


def open_model(
    folder: Path, weights: str | None = None, backbone: Backbone | None = None
) -> TrainedModel:
    """Whatever lies in `folder`: a model package, or an adapter, whose backbone is loaded from
    `weights` (default: the file it was trained on) or is `backbone`, shared with other adapters.

    Raises VidpipeError where `folder` holds neither.
    """
    form = read_json(folder / "config.json").get("format")
    if form == FORMAT:
        return load_package(folder)
    if form == ADAPTER_FORMAT:
        return load_adapter(folder, weights, backbone)
    raise VidpipeError(
        f"{folder}/config.json: format {form!r}, expected {ADAPTER_FORMAT!r} or {FORMAT!r}"
    )
