"""Model package: the deployable model, and the proof that it is the one that was trained.

`model.safetensors`: every tensor of the inference model. `config.json`: how to rebuild it, with
preprocessing and class names. `parity.json`: the proof. Version 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidpipe import __version__
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, architecture
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.checkpoint import FORMAT as ADAPTER_FORMAT
from vidpipe.training.checkpoint import TrainedModel, load_adapter
from vidpipe.weights import refuse_mismatch

FORMAT, VERSION = "vidpipe-model", 1


@dataclass(frozen=True)
class Parity:
    """Exported against trained model on the same clips, fp32."""

    clips: int
    max_abs_difference: float
    """Of logits."""
    top1_agreement: float
    tolerance: float


def inference_model(model: VideoModel) -> VideoModel:
    """Merged where the method can be merged, else a copy as it is; in eval mode."""
    merged = model.merge() if model.not_mergeable is None else copy.deepcopy(model)
    return merged.eval()


@torch.no_grad()
def prove_parity(
    trained: VideoModel, exported: VideoModel, clips: Sequence[Tensor], tolerance: float
) -> Parity:
    """Compare logits on `clips` (each (1, 3, T, H, W), normalised).

    Raises VidpipeError beyond `tolerance`: a merge with a wrong scale costs accuracy silently.
    """
    difference, agreed = 0.0, 0
    for clip in clips:
        a, b = trained.eval()(clip), exported.eval()(clip)
        difference = max(difference, float((a - b).abs().max()))
        agreed += int(a.argmax() == b.argmax())
    parity = Parity(len(clips), difference, agreed / len(clips), tolerance)
    # `not <=` so that NaN fails too
    if not difference <= tolerance or agreed < len(clips):
        raise VidpipeError(
            f"export: the exported {trained.name} model differs from the trained one by "
            f"{difference:.3g} in its logits (export.tolerance {tolerance:g}), top-1 agrees on "
            f"{agreed} of {len(clips)} clips; nothing was exported"
        )
    return parity


def save_package(folder: Path, trained: TrainedModel, exported: VideoModel, parity: Parity) -> None:
    state = {name: tensor.cpu().contiguous() for name, tensor in exported.state_dict().items()}
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / "model.safetensors")
        write_json(temporary / "parity.json", vars(parity))
        write_json(
            temporary / "config.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "vidpipe": __version__,
                "method": exported.name,
                "method_config": exported.config.model_dump(mode="json"),
                "merged": trained.model.not_mergeable is None,
                "backbone": trained.backbone.card(),
                "sampling": trained.sampling.model_dump(mode="json"),
                "transform": trained.transform.model_dump(mode="json"),
                "classes": trained.classes,
            },
        )


def load_package(folder: Path) -> TrainedModel:
    """The exported model in eval mode, with what travels beside it. Needs no other weights file.

    Raises VidpipeError when files are missing, corrupt or of another format.
    """
    source = folder / "config.json"
    card = read_json(source)
    if card.get("format") != FORMAT or card.get("version") != VERSION:
        raise VidpipeError(
            f"{source}: format {card.get('format')!r} version {card.get('version')!r}, expected "
            f"{FORMAT!r} version {VERSION}"
        )
    try:
        known = card["backbone"]
        config = BackboneConfig(source=known["source"], name=known["name"], weights="none")
        method = card["method"]
        method_config = METHODS[method].Config.model_validate(card["method_config"])
        sampling = SamplingConfig.model_validate(card["sampling"])
        transform = TransformConfig.model_validate(card["transform"])
        classes = [str(name) for name in card["classes"]]
        facts = (known["weights_sha256"], known["activation"])
        normalisation = (tuple(known["mean"]), tuple(known["std"]))
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise VidpipeError(f"{source}: not a complete description of a model ({reason})") from None
    vit = architecture(config, transform.size)
    model = build_method(method, vit, len(classes), sampling.num_frames, method_config)
    tensors = folder / "model.safetensors"
    try:
        state = load_file(tensors)
    except FileNotFoundError:
        raise VidpipeError(f"{tensors}: no such file") from None
    except Exception as error:  # safetensors raises its own type for every corruption
        raise VidpipeError(f"{tensors}: not a readable safetensors file ({error})") from None
    refuse_mismatch(str(tensors), model.state_dict(), state)
    model.load_state_dict(state)
    backbone = Backbone(vit, config, *facts, *normalisation)
    return TrainedModel(model.eval(), backbone, classes, sampling, transform)


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
