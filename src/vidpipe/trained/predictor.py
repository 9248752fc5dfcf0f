"""Several trained models side by side: opened once, each backbone's weights in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

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
from vidpipe.trained.card import ADAPTER, Card, read_card
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.config import ExtractConfig

MAX_FRAMES = 10_000_000
BackboneKey: TypeAlias = tuple[str, Size]


def open_models(folders: Sequence[Path], weights: str | None = None) -> dict[str, TrainedModel]:
    """Adapters and packages by name. Adapters of one backbone share its tensors.

    The name is the folder's, its parent's where it is called adapter or package, and the repository's
    in the hub's cache; where two would be the same, the path. `weights`: where the adapters' backbone
    is, in place of what they record.
    Raises VidpipeError for a folder given twice and as `open_model` does.
    """
    names = [model_name(folder) for folder in folders]
    opened: dict[str, TrainedModel] = {}
    backbones: dict[BackboneKey, Backbone] = {}
    for folder, name in zip(folders, names, strict=True):
        name = name if name and names.count(name) == 1 else str(folder)
        if name in opened:
            raise ArgumentError("model", f" {folder}: given twice")
        card = read_card(folder)
        backbone = _backbone(card, folder, weights, backbones)
        opened[name] = card.build(folder, weights, backbone)
    return opened


def model_name(folder: Path) -> str:
    """What a model in `folder` is called."""
    if folder.parent.name == "snapshots":  # models--OWNER--NAME/snapshots/COMMIT
        return folder.parents[1].name.rpartition("--")[2]
    return folder.resolve().parent.name if folder.name in ("adapter", "package") else folder.name


def backbone_key(card: Card, where: str) -> BackboneKey | None:
    """What adapters that share a backbone have in common; None of a package, which holds its own.

    `where`: the file or the hash of its weights.
    """
    own = card.backbone
    adapter = card.format == ADAPTER
    return (f"{own.source} {own.name} {own.pool} {where}", card.form.size) if adapter else None


def _backbone(
    card: Card, folder: Path, weights: str | None, known: dict[BackboneKey, Backbone]
) -> Backbone | None:
    """Of an adapter, its backbone as loaded for the first that has it."""
    key = backbone_key(card, weights or card.backbone.weights_sha256)
    if key is not None and key not in known:
        known[key] = load_backbone(card.backbone_config(folder, weights), card.form.size)
    return None if key is None else known[key]


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

    @property
    def thresholds(self) -> dict[str, list[float] | None]:
        """Of each model; None where a video has one class."""
        return {name: trained.thresholds for name, trained in self.models.items()}

    def views(self, segment: Segment, trained: TrainedModel) -> Tensor:
        """(V, T, 3, h, w) uint8, as evaluation has them: clips x crops."""
        frames = torch.from_numpy(segment.frames).permute(0, 3, 1, 2)
        positions = segment.positions[self.samplings.index(trained.sampling)]
        return crop_views(frames, positions, trained.form, self.spatial_crops)

    @torch.inference_mode()
    def of_boxes(self, segment: Segment, trained: TrainedModel, boxes: Tensor) -> Tensor:
        """(K, C) probabilities of (K, 4) boxes, fractions of the frame, on the CPU; as evaluation has
        them: the model sees the whole frame."""
        from vidpipe.tasks.detection.samples import whole_frame  # clips need nothing of boxes

        frames = torch.from_numpy(segment.frames).permute(0, 3, 1, 2)
        video = whole_frame(frames, trained.form.sides)[None].to(self.device)
        x = to_input(video, trained.backbone.mean, trained.backbone.std)
        network = trained.task.network(trained.model).eval()
        with autocast(self.precision, self.device):
            logits = network(x, boxes[None].to(self.device)).float()
        return trained.task.probabilities(logits)[0].cpu()

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
