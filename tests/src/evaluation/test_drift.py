"""Drift: no more alarms than promised where nothing changed, one where something did."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vidpipe.errors import VidpipeError
from vidpipe.evaluation.drift import ALPHA, Side, drift


def side(rng: np.random.Generator, n: int, shift: float = 0.0, **numbers: float) -> Side:
    features = rng.normal(0, 1, (n, 6)) * np.arange(1, 7)
    features[:, 0] += shift
    measured = {name: rng.normal(mean, 1, n) for name, mean in numbers.items()}
    return Side(tuple(f"clip {i}" for i in range(n)), features, measured)


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(1)
    alarms, far = 0, []
    for seed in range(200):
        found = drift(side(rng, 30, rate=25.0), side(rng, 20, rate=25.0), seed)
        alarms += bool(found.shifted)
        far.append(found.far)
    assert alarms <= 20  # 5 % of 200 and three standard deviations
    assert 0.02 < np.mean(far) < 0.12


def test_a_change_is_found_where_it_is() -> None:
    rng = np.random.default_rng(2)
    found = drift(side(rng, 40, rate=25.0), side(rng, 30, shift=1.5, rate=25.0))
    assert found.shifted == ["features"]
    found = drift(side(rng, 40, rate=25.0), side(rng, 30, rate=28.0))
    assert found.shifted == ["rate"]
    assert found.table.set_index("measure").loc["rate", "new"] == pytest.approx(28, abs=1)


def test_the_energy_distance_is_the_one_defined() -> None:
    """Against the means of all pairs, and p against every division of so few clips."""
    from itertools import combinations

    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(3)
    a, b = side(rng, 5), side(rng, 3, shift=4.0)
    both = np.concatenate([a.features, b.features])
    both = (both - a.features.mean(0)) / a.features.std(0)
    d = cdist(both, both)

    def energy(first: tuple[int, ...]) -> float:
        x = list(first)
        y = [i for i in range(8) if i not in first]
        return 2 * d[np.ix_(x, y)].mean() - d[np.ix_(x, x)].mean() - d[np.ix_(y, y)].mean()

    everywhere = [energy(chosen) for chosen in combinations(range(8), 5)]
    own = energy((0, 1, 2, 3, 4))
    row = drift(a, b).table.iloc[0]
    assert row.distance**2 == pytest.approx(own, rel=1e-9)
    exact = np.mean([value >= own - 1e-12 for value in everywhere])
    assert row.p == pytest.approx(exact, abs=4 * math.sqrt(exact / 1000) + 0.002)


def test_far_clips_come_first_and_unknown_numbers_are_no_test() -> None:
    rng = np.random.default_rng(4)
    reference, new = side(rng, 40, rate=25.0), side(rng, 12, rate=25.0)
    new.features[7] += 100
    new.numbers["rate"][:] = math.nan
    found = drift(reference, new)
    assert found.clips.name[0] == "clip 7"
    assert found.clips.far[0]
    rate = found.table.set_index("measure").loc["rate"]
    assert math.isnan(rate.p)
    assert math.isnan(rate.adjusted)
    assert found.table.adjusted[0] == found.table.p[0], "a test that is none corrects nothing"
    assert any("5 %" in line for line in found.sentences())
    assert ALPHA == 0.05


def test_a_single_clip_and_other_features_are_refused() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(VidpipeError, match="1 new clips; expected two"):
        drift(side(rng, 5), side(rng, 1))
    other = Side(("a", "b"), np.zeros((2, 3)), {})
    with pytest.raises(VidpipeError, match="6 and 3 channels"):
        drift(side(rng, 5), other)
