"""Labels as a manifest has them, and as numbers: one class a clip, or several at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

JOINT = "|"
"""Between the labels of one clip in a manifest and in tables; no class of several has it in its name."""


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of a clip that may have several; none for an empty text.

    Example:
        >>> split_labels("run|jump"), split_labels("")
        (('run', 'jump'), ())
    """
    return tuple(text.split(JOINT)) if text else ()


def join_labels(labels: Iterable[str]) -> str:
    """As a manifest has them: what `split_labels` takes apart."""
    return JOINT.join(labels)


def label_sets(labels: Sequence[str], several: bool) -> list[tuple[str, ...]]:
    """The classes of each clip, of a task with one label a clip or with `several`."""
    return [split_labels(label) if several else (label,) for label in labels]


def targets(labels: Sequence[str], classes: Sequence[str], several: bool) -> NDArray[Any]:
    """(N,) int64 class indices; with `several`, (N, C) uint8, 1 where a clip has the class.

    Raises KeyError for a label that is no class.
    """
    index = {name: i for i, name in enumerate(classes)}
    if not several:
        return np.array([index[label] for label in labels], dtype=np.int64)
    found = np.zeros((len(labels), len(classes)), np.uint8)
    for row, own in enumerate(label_sets(labels, several)):
        found[row, [index[label] for label in own]] = 1
    return found
