"""Several trained models side by side: opened once, each backbone's weights in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from vidpipe.backbones.zoo import Backbone, load_backbone
from vidpipe.config.messages import explain
from vidpipe.data.config import SamplingConfig
from vidpipe.data.model_input import crop_views, to_input
from vidpipe.device import Precision, autocast
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.image_size import Size, sides
from vidpipe.inference.segments import Segment
from vidpipe.trained.card import ADAPTER, Card, TrainedModel, read_card
from vidpipe.video.config import ExtractConfig

MAX_FRAMES = 10_000_000


def open_models(folders: Sequence[Path], weights: str | None = None) -> dict[str, TrainedModel]:
    """Adapters and packages by name. Adapters of one backbone share its tensors.

    The name is the folder's, or its parent's where it is called adapter or package; where two would
    be the same, the path. `weights`: where the adapters' backbone is, in place of what they record.
    Raises VidpipeError for a folder given twice and as `open_model` does.
    """
    names = [
        f.resolve().parent.name if f.name in ("adapter", "package") else f.name for f in folders
    ]
    opened: dict[str, TrainedModel] = {}
    backbones: dict[tuple[str, Size], Backbone] = {}
    for folder, name in zip(folders, names, strict=True):
        name = name if name and names.count(name) == 1 else str(folder)
        if name in opened:
            raise ArgumentError("model", f" {folder}: given twice")
        card = read_card(folder)
        backbone = _backbone(card, folder, weights, backbones)
        opened[name] = card.build(folder, weights, backbone)
    return opened


def _backbone(
    card: Card, folder: Path, weights: str | None, known: dict[tuple[str, Size], Backbone]
) -> Backbone | None:
    """Of an adapter, its backbone as loaded for the first that has it; a package holds its own."""
    if card.format != ADAPTER:
        return None
    config, size = card.backbone_config(folder, weights), card.form.size
    where = weights or card.backbone.weights_sha256
    key = (f"{config.source} {config.name} {config.pool} {where}", size)
    if key not in known:
        known[key] = load_backbone(config, size)
    return known[key]


def frames_of(models: Mapping[str, TrainedModel]) -> dict[str, Any]:
    """`extract.short_side` and `fps` of the frames that the models learned on.

    Where none knows: the source's rate, and a short side in proportion to 256 pixels for inputs whose
    short side is 224. Raises VidpipeError where two of them differ.
    """
    found = {name: m.extract for name, m in models.items() if "short_side" in m.extract}
    for name, frames in found.items():
        first, expected = next(iter(found.items()))
        if frames != expected:
            raise VidpipeError(
                f"{name}: made for frames of {_words(frames)}, {first} for {_words(expected)}; "
                "predict with each by itself, or say which frames to decode"
            )
    if found:
        return next(iter(found.values()))
    size = max(min(sides(trained.form.size)) for trained in models.values())
    return {"short_side": max(16, round(size * 256 / 224)), "fps": None}


def _words(frames: Mapping[str, Any]) -> str:
    fps = frames["fps"]
    return f"short side {frames['short_side']}, {f'{fps:g}' if fps else 'any'} frames/s"


def predict_extract(frames: Mapping[str, Any], **limits: Any) -> ExtractConfig:
    """Settings for decoding as `frames` (short_side, fps) say, within `limits` of ExtractConfig.

    A video may have one frame, and many: predictions hold no more of a long one than of a short one.
    """
    own = {"min_frames": 1, "max_frames": MAX_FRAMES}
    try:
        return ExtractConfig.model_validate({**own, **frames, **limits})
    except ValidationError as error:
        raise VidpipeError(f"extract: {explain(error, ExtractConfig)}") from None


@dataclass
class Predictor:
    """Probabilities of all `models` for a few segments at a time: the softmax's mean over views."""

    models: Mapping[str, TrainedModel]
    temporal_clips: int = 1
    spatial_crops: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, trained in self.models.items():
            if self.temporal_clips > 1 and trained.sampling.strategy == "uniform":
                raise ArgumentError(
                    "temporal_clips",
                    f" {self.temporal_clips}: model {name} samples uniformly, which "
                    "covers a video in one clip; only models of dense sampling have more",
                )
            trained.model.to(self.device).eval()
        found = dict.fromkeys(trained.sampling for trained in self.models.values())
        self.samplings: tuple[SamplingConfig, ...] = tuple(found)
        """Each once, in the order of `Segment.positions`."""

    @property
    def classes(self) -> dict[str, list[str]]:
        return {name: trained.classes for name, trained in self.models.items()}

    def views(self, segment: Segment, trained: TrainedModel) -> Tensor:
        """(V, T, 3, h, w) uint8, as evaluation has them: clips x crops."""
        frames = torch.from_numpy(segment.frames).permute(0, 3, 1, 2)
        positions = segment.positions[self.samplings.index(trained.sampling)]
        return crop_views(frames, positions, trained.form, self.spatial_crops)

    @torch.inference_mode()
    def __call__(self, segments: Sequence[Segment]) -> list[dict[str, Tensor]]:
        """For each segment, each model's (C,) probabilities, on the CPU."""
        results: list[dict[str, Tensor]] = [{} for _ in segments]
        for name, trained in self.models.items():
            video = torch.stack([self.views(segment, trained) for segment in segments])
            x = to_input(
                video.flatten(0, 1).to(self.device), trained.backbone.mean, trained.backbone.std
            )
            with autocast(self.precision, self.device):
                logits = trained.model(x).float()
            means = trained.task.probabilities(logits).unflatten(0, video.shape[:2]).mean(1).cpu()
            for result, mean in zip(results, means, strict=True):
                result[name] = mean
        return results
