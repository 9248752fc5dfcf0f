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
from vidpipe.trained.card import PACKAGE, TENSORS, Card
from vidpipe.trained.trained_model import TrainedModel


def inference_model(model: VideoModel) -> VideoModel:
    """Merged where the method can be merged, else a copy as it is; in eval mode."""
    merged = model.merge() if model.not_mergeable is None else copy.deepcopy(model)
    return merged.eval()


def describe(trained: TrainedModel, exported: VideoModel) -> dict[str, Any]:
    """config.json: how to rebuild the model, and what a caller must know."""
    form, classes = trained.form, len(trained.classes)
    with_boxes = "boxes" in trained.task.inputs
    boxes = {
        "boxes": {
            "dtype": "float32",
            "shape": ["batch", "boxes", 4],
            "meaning": "x1, y1, x2, y2 as fractions of the frame",
        }
    }
    return Card.of(
        PACKAGE,
        replace(trained, model=exported),
        merged=trained.model.not_mergeable is None,
        # Of the programs and of the served model; `load_package` gives the model behind normalisation.
        input={
            "name": "clips",
            "dtype": "uint8",
            "shape": ["batch", trained.sampling.num_frames, 3, *form.sides],
            "meaning": "RGB frames, the whole frame resized to the size; not normalised"
            if with_boxes
            else f"RGB frames, {form}; not normalised",
            **(boxes if with_boxes else {}),
        },
        output={
            "name": trained.task.output,
            "dtype": "float32",
            "shape": ["batch", "boxes", classes] if with_boxes else ["batch", classes],
        },
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
