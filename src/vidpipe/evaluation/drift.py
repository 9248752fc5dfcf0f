"""Whether new clips are like those a model was tested on: in its features, in their files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vidpipe.errors import VidpipeError
from vidpipe.study.statistics import holm

Array = NDArray[np.float64]
PERMUTATIONS = 999
ALPHA = 0.05
FEW = 10
"""Fewer clips on a side can hardly show anything."""
FAR = 0.95
"""A clip is far where its nearest neighbour is farther than this share of the reference's own are."""


@dataclass(frozen=True)
class Side:
    """Clips of one side: `names`, `features` (N, D), and `numbers`, a value a clip by what it measures
    (NaN where it is not known)."""

    names: tuple[str, ...]
    features: Array
    numbers: Mapping[str, Array]


@dataclass(frozen=True)
class Drift:
    table: pd.DataFrame
    """One row a measure: measure, reference and new (medians), distance, p, adjusted (by Holm)."""
    clips: pd.DataFrame
    """New clips, the farthest first: name, distance to the nearest reference clip, far."""
    far: float
    """Share of the new clips that are far; about 0.05 where nothing has changed."""
    reference: int
    new: int
    own: Array
    """(reference,) distance of each of its clips to the nearest other one."""
    limit: float
    """The distance beyond which a clip is far."""

    @property
    def shifted(self) -> list[str]:
        """The measures that differ significantly at 5 %, all of them taken together."""
        return self.table.measure[self.table.adjusted < ALPHA].tolist()

    def sentences(self) -> list[str]:
        """What it comes to, in words."""
        said = [
            f"{self.new} new clips are compared with {self.reference} of the reference. "
            f"{100 * self.far:.0f} % of the new ones are far from every clip of the reference; 5 % "
            "would be by chance."
        ]
        if self.shifted:
            said.append(f"They differ in {', '.join(self.shifted)} (at 5 %, by Holm's correction).")
        else:
            said.append("No measure differs significantly.")
        if min(self.reference, self.new) < FEW:
            said.append(f"Fewer than {FEW} clips on a side: only a large change can be seen.")
        return said


def drift(reference: Side, new: Side, seed: int = 0) -> Drift:
    """Compare `new` with `reference`.

    Features are compared by the energy distance (Szekely and Rizzo, 2013) of standardised features, with
    a permutation test; single numbers by the Kolmogorov-Smirnov test. Clips count as independent: those
    of one camera are not, so that a small p may be one camera's.

    Args:
        reference: clips the model has not been trained on, or it is surer of them than of any new one.
        new: clips to judge.
        seed: of the permutations.

    Returns:
        A `Drift`.

    Raises:
        VidpipeError: where a side has fewer than two clips, or features differ in width.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> sides = [Side(tuple("abcdefghij"), rng.normal(m, 1, (10, 4)), {}) for m in (0, 3)]
        >>> drift(*sides).shifted
        ['features']
    """
    for side, what in ((reference, "reference"), (new, "new")):
        if len(side.names) < 2:
            raise VidpipeError(f"drift: {len(side.names)} {what} clips; expected two at least")
    if reference.features.shape[1] != new.features.shape[1]:
        raise VidpipeError(
            f"drift: features of {reference.features.shape[1]} and {new.features.shape[1]} channels; "
            "embed both sides with one model"
        )
    distances = _distances(reference.features, new.features)
    n = len(reference.names)
    rows = [{"measure": "features", **_energy(distances, n, seed)}]
    for name in reference.numbers:
        rows.append({"measure": name, **_kolmogorov(reference.numbers[name], new.numbers[name])})
    table = pd.DataFrame(rows, columns=["measure", "reference", "new", "distance", "p"])
    table["adjusted"] = holm(table.p.tolist())
    own = distances[:n, :n] + np.diag(np.full(n, math.inf))
    limit = float(np.quantile(own.min(1), FAR))
    nearest = distances[n:, :n].min(1)
    clips = pd.DataFrame({"name": new.names, "distance": nearest, "far": nearest > limit})
    clips = clips.sort_values(["distance", "name"], ascending=[False, True], ignore_index=True)
    far = float((nearest > limit).mean())
    return Drift(table, clips, far, n, len(new.names), own.min(1), limit)


def _distances(reference: Array, new: Array) -> Array:
    """Between all clips of both sides, each channel in the reference's standard deviations."""
    from scipy.spatial.distance import cdist

    mean, spread = reference.mean(0), reference.std(0)
    both = (np.concatenate([reference, new]) - mean) / np.where(spread > 0, spread, 1.0)
    return cdist(both, both)


def _energy(distances: Array, n: int, seed: int) -> dict[str, float]:
    """The energy distance between the first `n` clips and the others, and how often a random division
    has one as large."""
    total, rng = len(distances), np.random.default_rng(seed)
    signs = np.full((PERMUTATIONS + 1, total), -1.0 / (total - n))
    for row in signs:
        row[:n] = 1.0 / n
    for row in signs[1:]:
        rng.shuffle(row)
    # 2 E|X-Y| - E|X-X'| - E|Y-Y'| = -s' D s, where s weighs one side by 1/n and the other by -1/m.
    values = -np.einsum("pi,ij,pj->p", signs, distances, signs, optimize=True)
    p = float((values[1:] >= values[0] - 1e-12).sum() + 1) / (PERMUTATIONS + 1)
    return {
        "reference": math.nan,
        "new": math.nan,
        "distance": float(np.sqrt(max(values[0], 0.0))),
        "p": p,
    }


def _kolmogorov(reference: Array, new: Array) -> dict[str, float]:
    from scipy.stats import ks_2samp

    reference, new = (side[~np.isnan(side)] for side in (reference, new))
    if not (len(reference) and len(new)):
        return dict.fromkeys(("reference", "new", "distance", "p"), math.nan)
    found = ks_2samp(reference, new)
    return {
        "reference": float(np.median(reference)),
        "new": float(np.median(new)),
        "distance": float(found.statistic),
        "p": float(found.pvalue),
    }
