"""Model package: the deployable model, and the proof that it is the one that was trained.

`model.safetensors`: every tensor of the inference model. `config.json`: how to rebuild it, with
preprocessing and class names. `parity.json`: the proof. Version 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidpipe import __version__
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.files import atomic_folder, read_json, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.checkpoint import TrainedModel
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


def load_package(folder: Path) -> tuple[VideoModel, dict[str, Any]]:
    """The exported model in eval mode, and its config.json. Needs no other weights file."""
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise VidpipeError(f"{folder}/config.json: not a {FORMAT} of version {VERSION}")
    source = folder / "model.safetensors"
    try:
        state = load_file(source)
    except Exception as error:  # safetensors raises its own type for every corruption
        raise VidpipeError(f"{source}: not a readable safetensors file ({error})") from None
    sampling = SamplingConfig.model_validate(config["sampling"])
    size = TransformConfig.model_validate(config["transform"]).size
    backbone = BackboneConfig(
        source=config["backbone"]["source"], name=config["backbone"]["name"], weights="none"
    )
    method = config["method"]
    model = build_method(
        method,
        architecture(backbone, size),
        len(config["classes"]),
        sampling.num_frames,
        METHODS[method].Config.model_validate(config["method_config"]),
    )
    refuse_mismatch(str(source), model.state_dict(), state)
    model.load_state_dict(state)
    return model.eval(), config
