"""What a model found, as the API says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vidpipe.serving.queries import Query
from vidpipe.tasks.base import said
from vidpipe.trained.shelf import Shelved

Found: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor]
"""Boxes (K, 4) and their scores (K,), where there are any; probabilities (C,), or (K, C) of boxes."""


def by_second(query: Query) -> Mapping[float, Tensor]:
    """(K, 4) boxes of each key second."""
    found: dict[float, list[tuple[float, ...]]] = {}
    for second, *box in query.boxes or ():
        found.setdefault(second, []).append(tuple(box))
    return {second: torch.tensor(boxes) for second, boxes in found.items()}


def labels_of(model: Shelved, probabilities: Tensor, top: int) -> list[dict[str, Any]]:
    """The `top` classes of (C,) probabilities; of several labels a clip, those that reach theirs."""
    trained = model.trained
    return [
        {"label": trained.classes[i], "score": round(float(probabilities[i]), 6)}
        for i in said(probabilities, trained.thresholds, top)
    ]


def boxes_of(model: Shelved, second: float, found: Found, top: int) -> list[dict[str, Any]]:
    """A row a box."""
    boxes, scores, probabilities = found
    assert boxes is not None
    rows = []
    for number, box in enumerate(boxes.tolist()):
        row: dict[str, Any] = {
            "second": round(second, 3),
            "box": [round(edge, 6) for edge in box],
            "labels": labels_of(model, probabilities[number], top),
        }
        if scores is not None:
            row["box_score"] = round(float(scores[number]), 6)
        rows.append(row)
    return rows
