"""Model package: the deployable model, and the proof that it is the one that was trained.

`model.safetensors`: every tensor of the inference model. `config.json`: the card (`trained/card.py`):
how to rebuild it, with preprocessing and class names. `parity.json`: the proof, one row a file.
`model*.pt2`, `model*.onnx`: programs (`export/programs.py`). `MODEL_CARD.md`: for people. Version 1.
Reading one needs torch, timm (with what it needs itself) and pydantic. `export/packaging.py` writes it.
"""

from __future__ import annotations

from pathlib import Path

from vidpipe.backbones.zoo import Backbone
from vidpipe.trained.card import PACKAGE, read_card
from vidpipe.trained.trained_model import TrainedModel


def load_package(folder: Path) -> TrainedModel:
    """The exported model in eval mode, with what travels beside it. Needs no other weights file.

    Raises VidpipeError when files are missing, corrupt or of another format.
    """
    return read_card(folder, PACKAGE).build(folder)


def open_model(
    folder: Path, weights: str | None = None, backbone: Backbone | None = None
) -> TrainedModel:
    """Whatever lies in `folder`: a model package, or an adapter, whose backbone is loaded from
    `weights` (default: the file it was trained on) or is `backbone`, shared with other adapters.

    Raises VidpipeError where `folder` holds neither.
    """
    return read_card(folder).build(folder, weights, backbone)
