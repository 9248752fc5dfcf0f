"""Classes that are said each on its own: of clips with several labels, and of people in boxes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.tasks.base import PLAIN, LossOptions, Task


class IndependentClasses(Task):
    """Sigmoid and binary cross-entropy; labels of N samples are (N, C), 1 where one has the class."""

    output = "probabilities"

    def class_weights(self, labels: NDArray[np.uint8], num_classes: int) -> Tensor:
        """Clips without the class over clips with it: what its positives count. 1 where none has it."""
        positives = labels.sum(0, dtype=np.int64)
        weights = np.where(positives > 0, (len(labels) - positives) / np.maximum(positives, 1), 1.0)
        return torch.from_numpy(weights).float()

    def chance(self, labels: NDArray[np.uint8], balanced: bool) -> float:
        return float(max(labels.mean(0).max(), (labels.sum(1) == 0).mean()))

    def guess(self, num_classes: int) -> float:
        return math.log(2)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def each(self, logits: Tensor, target: Tensor, options: LossOptions = PLAIN) -> Tensor:
        """(..., C) loss of each class: binary cross-entropy. With `focal_gamma`, focal loss
        (torchvision's, without its alpha); with `weights`, a class's positives count that much."""
        target = target * (1 - options.smoothing) + options.smoothing / 2
        if options.focal_gamma == 0:
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        else:
            from torchvision.ops import sigmoid_focal_loss

            gamma = options.focal_gamma
            loss = sigmoid_focal_loss(logits, target, alpha=-1, gamma=gamma, reduction="none")
        if options.weights is not None:
            loss = loss * (1 + (options.weights - 1) * target)
        return loss
