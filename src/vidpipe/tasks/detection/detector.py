"""What people in boxes do: a detection head on any method's tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel

ROI_SIZE = 7


class Detector(nn.Module):
    """Clips and boxes -> (K, C) logits of C actions, each on its own (sigmoid).

    Final norm of the patches, mean over T, RoIAlign of each box, maximum over its cells, linear: the
    detection head of VideoMAE (arXiv 2203.12602, section B) without its background class. The linear
    layer is the model's own head, so a detector is saved, merged and loaded as its model is.

    Args:
        model: a method on a ViT, of as many classes as there are actions; the last block computes every
            token from now on.
        roi_size: cells of a box, down and across: 7 in VideoMAE's code, 8 in MMAction2's.

    Raises:
        VidpipeError: for a Swin, and for a method whose trained part is its own pooling of the whole
            clip, which a box has no part in.

    Example:
        >>> import torch, vidpipe
        >>> from vidpipe.backbones.still import WEIGHTS
        >>> model = vidpipe.create_model(
        ...     "aim", "vit_still_patch12_48", num_classes=4, num_frames=8, weights=WEIGHTS
        ... )
        >>> video = model.preprocess(torch.zeros(8, 3, 60, 80, dtype=torch.uint8))
        >>> boxes = torch.tensor([[0, 0.1, 0.2, 0.4, 0.9], [0, 0.5, 0.0, 1.0, 1.0]])
        >>> Detector(model)(video, boxes).shape
        torch.Size([2, 4])
    """

    def __init__(self, model: VideoModel, roi_size: int = ROI_SIZE) -> None:
        super().__init__()
        own = type(model)
        if own.forward is not VideoModel.forward or not hasattr(model, "view"):
            raise VidpipeError(
                f"task detection: {model.name} on a {type(model.vit).__name__} gives no grid of tokens "
                "behind the last block; take a method with adapters on a ViT"
            )
        if not own.reads_pooled_only or model.name == "zero_shot":
            raise VidpipeError(
                f"task detection: {model.name} is a way to classify the whole clip, and a box needs a "
                "head of its own; take linear_probe or a method with adapters"
            )
        self.model = model
        self.roi_size = roi_size
        model.every_token = True

    def forward(self, video: Tensor, boxes: Tensor) -> Tensor:
        """(K, C) logits, or (B, M, C).

        Args:
            video: (B, 3, T, H, W) normalised clips, of the model's own size.
            boxes: (K, 5): number of the clip in the batch, x1, y1, x2, y2 as fractions of its picture;
            or
                (B, M, 4), as many for each clip.
        """
        if boxes.ndim == 3:
            clips, each = boxes.shape[:2]  # `len` would fix the number in a traced program
            numbers = torch.arange(clips, device=boxes.device, dtype=boxes.dtype)
            numbers = numbers[:, None, None].expand(-1, each, 1)
            logits = cast(Tensor, self(video, torch.cat([numbers, boxes], 2).flatten(0, 1)))
            return logits.reshape(clips, each, -1)
        grid = self.feature_map(video)
        rows, columns = grid.shape[-2:]
        scale = boxes.new_tensor([1, columns, rows, columns, rows])
        # RoIAlign has no kernel for fp16 and bf16 boxes on features of another type.
        cells = roi_align(
            grid.float(), (boxes * scale).float(), self.roi_size, sampling_ratio=0, aligned=True
        )
        return self._classify(cells.amax((2, 3)).to(grid.dtype))

    def feature_map(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, D, rows, columns), the mean over T of the normed patches."""
        view, num_frames = self.model.view, video.shape[2]
        rows, columns = view.grid
        patches = view.norm(self.model.tokens(video)[:, -rows * columns :])
        mean = patches.unflatten(0, (-1, num_frames)).mean(1)
        return cast(Tensor, mean.transpose(1, 2).unflatten(2, (rows, columns)))

    def merge(self) -> Detector:
        """A new detector without adapters and with equal logits. Raises VidpipeError where the method
        cannot be merged."""
        merged = self.model.merge()
        if hasattr(
            self.model, "backbone"
        ):  # made by create_model: it travels, with the input's form
            merged.backbone, merged.form = self.model.backbone, self.model.form
        return Detector(merged, self.roi_size)

    def _classify(self, feature: Tensor) -> Tensor:
        keys = self.model.clip_keys
        now, keys.now = keys.now, None  # a mask of keys is one a clip; boxes are drawn for anew
        try:
            return cast(Tensor, self.model.head(self.model.head_dropout(feature)))
        finally:
            keys.now = now
