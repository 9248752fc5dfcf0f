"""Features of clips and frames: what a trained model sees in a video before it names a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidpipe.backbones.ops import fold_frames
from vidpipe.data.model_input import to_input
from vidpipe.device import autocast
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.inference.segments import Segment
from vidpipe.methods.base import VideoModel
from vidpipe.methods.frozen_reader import FrozenReader
from vidpipe.trained.predictor import Predictor


def clip_and_frame_features(
    model: VideoModel, video: Tensor, frames: bool
) -> tuple[Tensor, Tensor | None]:
    """What the head classifies, and with `frames` the pooled feature of each frame.

    Args:
        model: in eval mode.
        video: (B, 3, T, H, W), normalised.
        frames: whether features of frames are wanted.

    Returns:
        (B, D), before the head's dropout and linear layer, the mean over frames where it sees each; and
        (B, T, D'), of tokens behind the last block, by the image model's own pooling, or None.

    Raises:
        VidpipeError: where frames are wanted of a Swin, which has no token for each.
    """
    seen: list[Tensor] = []
    found: Tensor | None = None

    def keep(module: object, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.head_dropout.register_forward_pre_hook(keep)
    try:
        if not frames:
            model(video)
        elif not hasattr(model, "view"):
            raise VidpipeError(f"frames: a {type(model.vit).__name__} has no features of frames")
        elif isinstance(model, FrozenReader):  # its frames are the image model's own
            x = model.view.norm_pre(model.view.embed(fold_frames(video)))
            for block in model.blocks:
                x = block(x)
            found = model.view.pool(x).unflatten(0, (len(video), -1))
            model(video)
        else:
            tokens = model.tokens(video)
            found = model.view.pool(tokens).unflatten(0, (len(video), -1))
            model.classify(tokens, video.shape[2])  # not the whole forward a second time
    finally:
        handle.remove()
    clip = seen[0].float()
    return clip if clip.ndim == 2 else clip.mean(1), None if found is None else found.float()


@dataclass
class Embedder(Predictor):
    """As `Predictor`, with features in place of probabilities."""

    frames: bool = False
    """Whether features of frames follow that of the clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames and self.temporal_clips > 1:
            raise ArgumentError(
                "temporal_clips",
                f" {self.temporal_clips}: features of frames are those of one clip; leave it at 1",
            )

    @torch.inference_mode()
    def __call__(self, segments: Sequence[Segment]) -> list[dict[str, Tensor]]:
        """For each segment, by model: (1, D), or (1 + T, D) with frames: the clip's feature first, then
        each frame's, all means over the views. On the CPU, fp32."""
        results: list[dict[str, Tensor]] = [{} for _ in segments]
        for name, trained in self.models.items():
            video = torch.stack([self.views(segment, trained) for segment in segments])
            rows = self.of_views(video, name)
            for result, own in zip(results, rows, strict=True):
                result[name] = own
        return results

    @torch.inference_mode()
    def of_views(self, video: Tensor, name: str) -> Tensor:
        """(B, V, T, 3, h, w) uint8 views of B clips -> (B, 1, D), or (B, 1 + T, D) with frames."""
        trained = self.models[name]
        x = to_input(
            video.flatten(0, 1).to(self.device), trained.backbone.mean, trained.backbone.std
        )
        with autocast(self.precision, self.device):
            clip, frames = clip_and_frame_features(trained.model, x, self.frames)
        if frames is not None and frames.shape[-1] != clip.shape[-1]:
            raise VidpipeError(
                f"frames: {trained.model.name} has {clip.shape[-1]} channels for a clip, and "
                f"{frames.shape[-1]} for a frame; embed without frames"
            )
        every = clip[:, None] if frames is None else torch.cat([clip[:, None], frames], 1)
        return every.unflatten(0, video.shape[:2]).mean(1).cpu()
