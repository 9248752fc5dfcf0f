"""Fewer training clips, for accuracy against data (AIM Fig. 3, ST-Adapter Fig. 2c)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.config import SubsetConfig

logger = logging.getLogger(__name__)
ALL = object()
"""All clips, as if they were a class."""


def subset_rows(
    ids: Sequence[str], labels: Sequence[Iterable[Hashable]], config: SubsetConfig
) -> NDArray[np.int64]:
    """Positions in `ids`, ascending, of the clips to train on; all where `config` asks for nothing.

    Each class is ranked by a hash of (seed, id) and its first clips are taken: `fraction` of them,
    at least one, or `per_class`, or all there are where a class has fewer, with a warning. So a
    smaller subset is part of a larger one, and a clip's place depends neither on the order of rows
    nor on the clips of other classes.

    `labels`: the classes of each clip. Where clips have several, or none, a fraction is of all clips,
    and of each class at least one; a shot of one class is one of the clip's other classes, too.
    """
    if config.fraction is None and config.per_class is None:
        return np.arange(len(ids))
    classes: dict[Hashable, list[int]] = {}
    for row, own in enumerate(labels):
        for label in own:
            classes.setdefault(label, []).append(row)
    several = sum(map(len, classes.values())) != len(ids)
    if several and config.fraction is not None:
        classes[ALL] = list(range(len(ids)))
    chosen: list[int] = []
    small: list[str] = []
    for label, rows in classes.items():
        if config.per_class is not None:
            count = config.per_class
            if len(rows) < count:
                small.append(f"{label} ({len(rows)})")
        elif several and label is not ALL:
            count = 1
        else:
            count = max(1, round((config.fraction or 0) * len(rows)))
        rows.sort(key=lambda row: hashlib.sha256(f"{config.seed} {ids[row]}".encode()).digest())
        chosen += rows[:count]
    if small:
        logger.warning(
            "subset.per_class %s: %d classes have fewer clips, and all of them are used: %s%s",
            config.per_class,
            len(small),
            ", ".join(small[:10]),
            ", ..." if len(small) > 10 else "",
        )
    return np.unique(np.array(chosen, dtype=np.int64))
