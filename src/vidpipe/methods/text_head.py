"""A head whose classes are texts: the linear layer of CLIP's zero-shot classifier, ready to be trained.

    logits = scale * weight . normalise(projection(feature)) + bias

`weight` (C, E) starts as the class embeddings and `bias` at zero; with them, a clip of equal frames has
the logits of the zero-shot classifier. Both are trained. The projection and the scale are the image
model's own, frozen, and travel with the adapter, so that no text tower is needed afterwards. The norm
stays a layer of the head: folded into the weights it would be right for one length of feature only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidpipe.backbones.text_tower import ClassTexts


class TextHead(nn.Linear):
    """Features (B, D), or (B, T, D) of frames, -> (B, C) logits.

    Of frames, the mean of their normalised projections is classified (CLIP4Clip, arXiv 2104.08860,
    section 3.3, "meanP").

    Args:
        width: D, of the features.
        text_width: E, of the space that images and texts share.
        num_classes: C.
    """

    def __init__(self, width: int, text_width: int, num_classes: int) -> None:
        super().__init__(text_width, num_classes)
        self.projection = nn.Linear(width, text_width)
        self.scale = nn.Parameter(torch.ones(1))
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> TextHead:
        """Of weight and bias; projection and scale stay frozen."""
        super().requires_grad_(False)
        for own in (self.weight, self.bias):
            own.requires_grad_(requires_grad)
        return self

    def forward(self, feature: Tensor) -> Tensor:
        x = F.normalize(self.projection(feature), dim=-1)
        if x.ndim == 3:
            x = F.normalize(x.mean(1), dim=-1)
        return self.scale * F.linear(x, self.weight) + self.bias

    @torch.no_grad()
    def read(self, texts: ClassTexts) -> None:
        """Start from `texts`, of as many classes."""
        self.weight.copy_(texts.embeddings)
        self.bias.zero_()
        self.projection.weight.copy_(texts.projection)
        self.projection.bias.copy_(texts.bias)
        self.scale.fill_(texts.scale)


def make_head(vit: nn.Module, width: int, num_classes: int, init: str, std: float) -> nn.Linear:
    """The head of a method: linear on the feature, or a `TextHead` into the text space of `vit` (of as
    many channels as the feature where it has none), random until its texts are read."""
    head: nn.Linear
    if init == "text":
        head = TextHead(width, cast(Any, getattr(vit, "text_width", width)), num_classes)
    else:
        head = nn.Linear(width, num_classes)
    nn.init.normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
    return head
