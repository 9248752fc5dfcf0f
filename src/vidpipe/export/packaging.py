"""Writing a model package; `vidpipe.trained.package` says what is in one, and reads it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.export.parity import Parity
from vidpipe.files import atomic_folder, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.trained.card import PACKAGE, TENSORS, Card, TrainedModel


def inference_model(model: VideoModel) -> VideoModel:
    """Merged where the method can be merged, else a copy as it is; in eval mode."""
    merged = model.merge() if model.not_mergeable is None else copy.deepcopy(model)
    return merged.eval()


def describe(trained: TrainedModel, exported: VideoModel) -> dict[str, Any]:
    """config.json: how to rebuild the model, and what a caller must know."""
    form = trained.form
    return Card.of(
        PACKAGE,
        replace(trained, model=exported),
        merged=trained.model.not_mergeable is None,
        # Of the programs and of the served model; `load_package` gives the model behind normalisation.
        input={
            "name": "clips",
            "dtype": "uint8",
            "shape": ["batch", trained.sampling.num_frames, 3, *form.sides],
            "meaning": f"RGB frames, {form}; not normalised",
        },
        output={"name": "logits", "dtype": "float32", "shape": ["batch", len(trained.classes)]},
    ).plain()


def save_package(
    folder: Path, trained: TrainedModel, exported: VideoModel, *parities: Parity
) -> None:
    """Write model, description and proof to `folder` as a whole."""
    state = {name: tensor.cpu().contiguous() for name, tensor in exported.state_dict().items()}
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / TENSORS[PACKAGE])
        write_json(temporary / "parity.json", [vars(parity) for parity in parities])
        write_json(temporary / "config.json", describe(trained, exported))
