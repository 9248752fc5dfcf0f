"""Folders of tiny models with non-zero adapters, and clips for them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import randomise

import vidpipe
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import Parity
from vidpipe.inference.segments import Segment, segments
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.classifier import Classifier
from vidpipe.trained.trained_model import TrainedModel

NAME, SIZE, T = "vit_tiny_patch16_224", 32, 4
UNIFORM = SamplingConfig(strategy="uniform", num_frames=T)
DENSE = SamplingConfig(strategy="dense", num_frames=T, stride=2)


def backbone_file(path: Path, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    vit = architecture(BackboneConfig(name=NAME, weights="none"), SIZE)
    randomise(vit, seed)
    save_file(vit.state_dict(), path)
    return path


def tiny_model(
    weights: Path,
    method: str = "st_adapter",
    classes: tuple[str, ...] = ("left", "right", "up"),
    sampling: SamplingConfig = UNIFORM,
    seed: int = 0,
) -> TrainedModel:
    backbone = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE)
    torch.manual_seed(seed)
    model = build_method(method, backbone.vit, len(classes), T, METHODS[method].Config())
    for name, tensor in model.adapter_state().items():
        # A head whose answer depends on the clip: tests of wrong frames must be able to fail.
        tensor += (1.0 if name.startswith("head.") else 0.05) * torch.randn_like(tensor)
    transform = TransformConfig(size=SIZE)
    return TrainedModel(model.eval(), backbone, list(classes), sampling, transform)


def save_tiny_adapter(folder: Path, weights: Path, *args: object, **kwargs: object) -> Path:
    save_adapter(folder, tiny_model(weights, *args, **kwargs), {})  # type: ignore[arg-type]
    return folder


def save_tiny_package(folder: Path, weights: Path, *args: object, **kwargs: object) -> Path:
    trained = tiny_model(weights, *args, **kwargs)  # type: ignore[arg-type]
    save_package(folder, trained, inference_model(trained.model), Parity(1, 0.0, 1.0, 1e-4))
    return folder


def here(folder: Path) -> Classifier:
    """The classifier of a folder, which decodes in this process: a process of its own takes seconds."""
    classifier = vidpipe.load(folder, device="cpu")

    def decoded(path: str | Path) -> Segment:
        (segment,) = segments(str(path), classifier._request)
        return segment

    classifier._decoded = decoded  # type: ignore[method-assign]
    return classifier


def two_models_and_a_package(root: Path) -> Path:
    """Adapters `one` and `two` (other classes, dense) on one backbone, a package of `one`."""
    weights = backbone_file(root / "vit.safetensors")
    save_tiny_adapter(root / "one" / "adapter", weights)
    save_tiny_adapter(root / "two", weights, "aim", ("a", "b"), DENSE, seed=3)
    save_tiny_package(root / "one" / "package", weights)
    return root
