"""The choice of clips that `vidpipe explain` and `vidpipe data show` draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidpipe.config.messages import nearest
from vidpipe.data.dataset import Clips
from vidpipe.errors import VidpipeError


def choose_clips(
    source: Clips, class_name: str | None, count: int, seed: int, split: str
) -> list[int]:
    """Up to `count` indices into `source`, rising. `split` is named in the error only.

    Raises VidpipeError for a class that is unknown or has no clip here.
    """
    wanted = np.arange(len(source))
    if class_name is not None:
        index = class_index(source.classes, "--class", class_name)
        one = source.labels.ndim == 1
        wanted = np.flatnonzero(source.labels == index if one else source.labels[:, index])
        if len(wanted) == 0:
            raise VidpipeError(f"--class {class_name}: no usable clip of it in split {split}")
    chosen = np.random.default_rng(seed).permutation(wanted)[:count]
    return [int(i) for i in np.sort(chosen)]


def class_index(classes: Sequence[str], option: str, name: str) -> int:
    """Where `name`, which `option` gave, stands. Raises VidpipeError with the nearest name."""
    if name not in classes:
        raise VidpipeError(f"{option} {name}: no such class{nearest(name, classes)}")
    return classes.index(name)
