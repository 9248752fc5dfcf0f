"""Writing a model package; `vidpipe.trained.package` says what is in one, and reads it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vidpipe.export.parity import Parity
from vidpipe.files import atomic_folder, write_json
from vidpipe.methods.base import VideoModel
from vidpipe.trained.adapter import TrainedModel
from vidpipe.trained.package import FORMAT, VERSION
from vidpipe.version import __version__


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
