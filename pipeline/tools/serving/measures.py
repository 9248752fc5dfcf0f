"""What a server counts, and its numbers as Prometheus reads them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends in seconds, of requests' durations."""
Snapshot = Mapping[str, Any]


class Measures:
    """Counts of one replica, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._durations: Counter[float] = Counter()
        self._seconds = 0.0
        self._batches = self._items = self._in_flight = self._most = 0

    def begin(self) -> None:
        """A request is let in."""
        with self._lock:
            self._in_flight += 1
            self._most = max(self._most, self._in_flight)

    def end(self) -> None:
        with self._lock:
            self._in_flight -= 1

    @property
    def in_flight(self) -> int:
        """Requests that were let in and are not answered."""
        return self._in_flight

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Any request, let in or not; the duration counts of predictions that were answered."""
        with self._lock:
            self._requests[route, status] += 1
            if route == "predict" and status == 200:
                end = next((end for end in BUCKETS if seconds <= end), float("inf"))
                self._durations[end] += 1
                self._seconds += seconds

    def batch(self, items: int) -> None:
        with self._lock:
            self._batches, self._items = self._batches + 1, self._items + items

    def snapshot(self, **more: float) -> Snapshot:
        """Plain numbers, which travel between processes."""
        with self._lock:
            return {
                "requests": dict(self._requests),
                "durations": dict(self._durations),
                "seconds": self._seconds,
                "batches": self._batches,
                "items": self._items,
                "in_flight": self._in_flight,
                "most_in_flight": self._most,
                "resident_bytes": psutil.Process().memory_info().rss,
                **more,
            }


GAUGES = {
    "in_flight": "Requests that were let in and are not answered.",
    "most_in_flight": "The most of them at a time so far.",
    "queue": "How many may be at a time.",
    "models": "Models in memory.",
    "model_mb": "MB of their tensors, each counted once.",
    "shared_mb": "MB of tensors that several models have in common.",
    "resident_bytes": "Memory of the process.",
}
COUNTERS = {
    "batches": "Passes through a model.",
    "items": "Clips and windows that went through a model.",
}


def prometheus(snapshots: Sequence[Snapshot]) -> str:
    """The numbers of all replicas in Prometheus' text format, each with its label `replica`."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    requests = CounterMetricFamily(
        "vidpipe_requests", "Requests by route and status.", labels=["replica", "route", "status"]
    )
    durations = HistogramMetricFamily(
        "vidpipe_predict_seconds", "From a request's first byte to its answer.", labels=["replica"]
    )
    counters = {
        key: CounterMetricFamily(f"vidpipe_{key}", text, labels=["replica"])
        for key, text in COUNTERS.items()
    }
    gauges = {
        key: GaugeMetricFamily(f"vidpipe_{key}", text, labels=["replica"])
        for key, text in GAUGES.items()
    }
    for number, found in enumerate(snapshots):
        own = [str(number)]
        for (route, status), count in sorted(found["requests"].items()):
            requests.add_metric([*own, route, str(status)], count)
        total, buckets = 0, []
        for end in (*BUCKETS, float("inf")):
            total += found["durations"].get(end, 0)
            buckets.append(("+Inf" if end == float("inf") else f"{end:g}", total))
        durations.add_metric(own, buckets, found["seconds"])
        for key, counter in counters.items():
            counter.add_metric(own, found[key])
        for key, gauge in gauges.items():
            gauge.add_metric(own, found[key])

    class Collected:
        def collect(self) -> list[Any]:
            return [requests, durations, *counters.values(), *gauges.values()]

    registry = CollectorRegistry()
    registry.register(Collected())  # type: ignore[arg-type]
    return generate_latest(registry).decode()
