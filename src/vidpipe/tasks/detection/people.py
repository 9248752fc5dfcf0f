"""Boxes of the people in a key frame: read from a file of proposals, or found by a detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidpipe.data.layouts.ava_files import inside, read_boxes
from vidpipe.data.layouts.common import stem
from vidpipe.errors import ArgumentError, VidpipeError
from vidpipe.weights import read_weights, refuse_mismatch

DETECTORS = (
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
"""Of torchvision, trained on COCO: 91 classes, of which 1 is a person."""
COCO_CLASSES, PERSON = 91, 1
MOST = 100
"""Boxes of one key frame; those of highest score."""


class People(Protocol):
    """Who is in a key frame."""

    def __call__(
        self, source: str, second: float, frame: NDArray[np.uint8]
    ) -> tuple[Tensor, Tensor]:
        """(H, W, 3) frame -> (K, 4) boxes as fractions, and (K,) scores."""


class Proposals:
    """Those of a file `video, second, x1, y1, x2, y2, score`.

    Raises:
        VidpipeError: with file and row, as the layout ava does; a pickle is refused.
    """

    def __init__(self, path: Path, min_score: float) -> None:
        rows = read_boxes(path, proposals=True)
        boxes = inside(path, rows)
        self.found: dict[tuple[str, int], tuple[NDArray[Any], NDArray[Any]]] = {}
        order = np.argsort(rows.frame, kind="stable")
        ends = np.searchsorted(rows.frame[order], np.arange(1, len(rows.frames)))
        for number, index in enumerate(np.split(order, ends) if len(rows) else []):
            kept = index[rows.score[index] >= min_score]
            kept = kept[np.argsort(-rows.score[kept], kind="stable")][:MOST]
            self.found[rows.frames[number]] = boxes[kept], rows.score[kept]

    @property
    def seconds(self) -> Mapping[str, list[int]]:
        """Key seconds of each video."""
        found: dict[str, list[int]] = {}
        for video, second in self.found:
            found.setdefault(video, []).append(second)
        return found

    def __call__(
        self, source: str, second: float, frame: NDArray[np.uint8]
    ) -> tuple[Tensor, Tensor]:
        boxes, scores = self.found[stem(source), round(second)]
        return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float()


class PersonDetector:
    """A detector of torchvision's.

    Args:
        weights: a file of its state (safetensors, or .pth without code), or `hub`: torchvision's own,
        which
            is downloaded then.
        name: one of DETECTORS.
        min_score: of a person.
        device: where it computes.

    Raises:
        VidpipeError: for another name, and weights that are missing or do not fit.
    """

    def __init__(self, weights: str, name: str, min_score: float, device: torch.device) -> None:
        from torchvision.models import get_model

        if name not in DETECTORS:
            raise ArgumentError("detector_model", f" {name}: expected {', '.join(DETECTORS)}")
        if weights == "hub":
            model = get_model(name, weights="DEFAULT", weights_backbone=None)
        else:
            model = get_model(name, weights=None, weights_backbone=None, num_classes=COCO_CLASSES)
            path = Path(weights)
            if not path.is_file():
                raise VidpipeError(
                    f"{path}: no such file; expected the weights of {name}, or hub to download "
                    "torchvision's"
                )
            state = read_weights(path)[0]
            refuse_mismatch(str(path), model.state_dict(), state)
            model.load_state_dict(state)
        self.model = model.eval().to(device)
        self.min_score, self.device = min_score, device

    @torch.inference_mode()
    def __call__(
        self, source: str, second: float, frame: NDArray[np.uint8]
    ) -> tuple[Tensor, Tensor]:
        height, width = frame.shape[:2]
        picture = torch.from_numpy(frame).to(self.device).permute(2, 0, 1).float() / 255
        (found,) = self.model([picture])
        kept = (found["labels"] == PERSON) & (found["scores"] >= self.min_score)
        boxes = found["boxes"][kept][:MOST].cpu() / torch.tensor([width, height, width, height])
        return boxes.clamp(0, 1), found["scores"][kept][:MOST].cpu()
