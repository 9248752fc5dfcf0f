"""Percentiles of any number of times in constant memory."""

from __future__ import annotations

import math
from collections import Counter

GROWTH = 1.02
"""From one bin to the next: what is said is right to 1 %."""
LEAST_MS = 0.01


class Latency:
    """Counts in bins of 2 %: a day of them takes no more memory than an hour."""

    def __init__(self) -> None:
        self.bins: Counter[int] = Counter()

    def add(self, milliseconds: float) -> None:
        self.bins[round(math.log(max(milliseconds, LEAST_MS)) / math.log(GROWTH))] += 1

    def percentile(self, share: float) -> float | None:
        """Milliseconds that `share` of them do not exceed; None where there are none."""
        left = math.ceil(share * self.bins.total())
        for index in sorted(self.bins):
            left -= self.bins[index]
            if left <= 0:
                return float(f"{GROWTH**index:.3g}")
        return None

    def summary(self) -> dict[str, float | None]:
        return {f"p{p}_ms": self.percentile(p / 100) for p in (50, 95, 99)}
