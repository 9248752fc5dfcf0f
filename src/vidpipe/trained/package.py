"""Model package: the deployable model, and the proof that it is the one that was trained.

`model.safetensors`: every tensor of the inference model. `config.json`: how to rebuild it, with
preprocessing and class names. `parity.json`: the proof, one row a file. `model*.pt2`, `model*.onnx`:
programs (`programs.py`). `MODEL_CARD.md`: for people. Version 1. Reading one needs torch, timm (with
what it needs itself) and pydantic.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import save_file

from vidpipe import __version__
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, architecture
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.export.parity import Parity, prove_parity
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.adapter import FORMAT as ADAPTER_FORMAT
from vidpipe.trained.adapter import TrainedModel, load_adapter, read_card, read_tensors
from vidpipe.weights import refuse_mismatch

__all__ = [
    "Parity",
    "describe",
    "inference_model",
    "load_package",
    "open_model",
    "prove_parity",
    "save_package",
]
FORMAT, VERSION = "vidpipe-model", 1


def inference_model(model: VideoModel) -> VideoModel:
    """Merged where the method can be merged, else a copy as it is; in eval mode."""
    merged = model.merge() if model.not_mergeable is None else copy.deepcopy(model)
    return merged.eval()


def describe(trained: TrainedModel, exported: VideoModel) -> dict[str, Any]:
    """config.json: how to rebuild the model, and what a caller must know."""
    size = trained.transform.size
    return {
        "format": FORMAT,
        "version": VERSION,
        "vidpipe": __version__,
        "method": exported.name,
        "method_config": exported.config.model_dump(mode="json"),
        "merged": trained.model.not_mergeable is None,
        "backbone": trained.backbone.card(),
        "sampling": trained.sampling.model_dump(mode="json"),
        "transform": trained.transform.model_dump(mode="json"),
        "extract": trained.extract,
        "classes": trained.classes,
        # Of the programs and of the served model; `load_package` gives the model behind normalisation.
        "input": {
            "name": "clips",
            "dtype": "uint8",
            "shape": ["batch", trained.sampling.num_frames, 3, size, size],
            "meaning": "RGB frames, short side resized to the size and cropped; not normalised",
        },
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", len(trained.classes)]},
    }


def save_package(
    folder: Path, trained: TrainedModel, exported: VideoModel, *parities: Parity
) -> None:
    """Write model, description and proof to `folder` as a whole."""
    state = {name: tensor.cpu().contiguous() for name, tensor in exported.state_dict().items()}
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        write_json(temporary / "parity.json", [vars(parity) for parity in parities])
        write_json(temporary / "config.json", describe(trained, exported))


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
    model = build_method(method, vit, len(classes), sampling.num_frames, method_config)
    tensors = folder / "model.safetensors"
    state = read_tensors(tensors)
    refuse_mismatch(str(tensors), model.state_dict(), state)
    model.load_state_dict(state)
    backbone = Backbone(vit, config, *facts, *normalisation)
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
