"""Predictions of a study whose truth is known; clips of a group are alike, and so are methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import logit

from vidpipe.study.outcomes import COLUMNS, Outcomes


def predictions(
    accuracies: Sequence[float],
    *,
    groups: int = 12,
    clips: int = 8,
    seeds: int = 2,
    alike: float = 1.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Methods m0, m1, ... of about these accuracies on `clips` clips a group, one of each class k0, k1,
    ...; `alike` is the deviation, in logits, of what all clips of a group share."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        shared = alike * rng.normal()
        for clip in range(clips):
            own = rng.normal()
            for m, accuracy in enumerate(accuracies):
                for s in range(seeds):
                    right = logit(accuracy) + shared + own + rng.normal() > 0
                    predicted = (
                        clip if right else (clip + rng.integers(1, max(clips, 2))) % max(clips, 2)
                    )
                    rows.append(
                        (
                            f"m{m}",
                            s,
                            f"g{group:02}c{clip}",
                            f"g{group:02}",
                            f"k{clip}",
                            f"k{predicted}",
                        )
                    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def outcomes(*accuracies: float, **options: object) -> Outcomes:
    return Outcomes.of(predictions(accuracies, **options))  # type: ignore[arg-type]
