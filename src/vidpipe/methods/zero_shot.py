"""Zero-shot classification by CLIP: nothing is trained, the classes are their names.

The row that says whether training is worth it. Each frame's feature is projected into the text space
and normalised; their mean over T, normalised again, is compared with the class embeddings (the mean of
the normalised features of a class's prompts, normalised): logits = logit_scale * cos (CLIP, arXiv
2103.00020; CLIP4Clip, arXiv 2104.08860, meanP). Needs an open_clip model with a text tower.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import ZeroShotConfig


class ZeroShot(VideoModel):
    name = "zero_shot"
    Config = ZeroShotConfig
    order_blind = True
    starts_as_image_model = False  # it classifies the mean of normalised projections
    not_mergeable = "it adds nothing to the backbone"

    def __init__(
        self, vit: nn.Module, num_classes: int, num_frames: int, config: ZeroShotConfig
    ) -> None:
        super().__init__(vit, num_classes, num_frames, config)
        self.declare()
        self.head.requires_grad_(False)
        self.trained_names = frozenset()

    def classify(self, x: Tensor, num_frames: int) -> Tensor:
        """The image model's feature of each frame, projected and normalised, mean over T, cosines."""
        frames = self.view.pool(x).unflatten(0, (-1, num_frames))
        return cast(Tensor, self.head(self.head_dropout(frames)))
