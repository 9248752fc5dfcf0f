"""Spans of files as rows of a manifest: each file is decoded and stored once, however many it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from vidpipe.data.layouts.common import Item
from vidpipe.video.quarantine import Reason
from vidpipe.video.store import FrameStore

SLACK_S = 0.5
"""By how much a span may end after its file: annotators round, and players count another duration."""
LEAST_FRAMES = 2


def typical_length(items: Sequence[Item]) -> float:
    """Median length of the training spans, seconds."""
    return median(i.end_s - i.start_s for i in items if i.split == "train")


def rows_of_file(
    row: Mapping[str, Any], spans: Sequence[Item], background: str | None, piece_s: float
) -> list[dict[str, Any]]:
    """The rows of one file's spans, from the row of the whole file.

    A span outside the file is quarantined (`outside_file`). With `background`, what lies between spans
    is a row of that label, too, in pieces of about `piece_s`.
    """
    base = dict(row)
    total, fps = int(row["frames"]), float(row["fps"])
    found: list[dict[str, Any]] = []

    def add(label: str, start_s: float, end_s: float, where: str = "") -> None:
        own = {**base, "id": f"{row['id']}@{start_s:.6g}-{end_s:.6g}", "label": label}
        own |= {"first": 0, "file_frames": total, "start_s": start_s, "end_s": end_s}
        found.append(own)
        if row["status"] != "ok":
            return
        first, last = round(start_s * fps), min(total, round(end_s * fps))
        reason: Reason | None = None
        if start_s * fps >= total or end_s * fps > total + SLACK_S * fps:
            reason = "outside_file"
            detail = f"{start_s:g} to {end_s:g} s, and the video ends at {total / fps:.3f} s"
        elif last - first < LEAST_FRAMES:
            reason, detail = "too_short", f"{start_s:g} to {end_s:g} s has no {LEAST_FRAMES} frames"
        if reason is not None:
            place = {"shard": -1, "offset": 0, "nbytes": 0, "frames": 0, "file_frames": 0}
            detail = f"{where}: {detail}" if where else detail
            own |= {"status": "quarantined", "reason": reason, "detail": detail, **place}
        else:
            own |= {"first": first, "frames": last - first}

    at, whole = 0.0, total / fps if row["status"] == "ok" else 0.0
    for span in spans:
        _gap(add, background, at, min(span.start_s, whole), piece_s)
        add(span.label, span.start_s, span.end_s, span.where)
        at = span.end_s
    _gap(add, background, at, whole, piece_s)
    return found


def _gap(add: Any, label: str | None, start_s: float, end_s: float, piece_s: float) -> None:
    if label is None or end_s - start_s < piece_s / 4:
        return
    pieces = max(1, round((end_s - start_s) / piece_s))
    edges = [start_s + (end_s - start_s) * i / pieces for i in range(pieces + 1)]
    for a, b in pairwise(edges):
        add(label, round(a, 6), round(b, 6))


def windows(
    store: FrameStore, split: str, window_s: float, step_s: float, label: str
) -> FrameStore:
    """The files of one split as windows, each a row of split `val` with `label`; column `file` numbers
    the files. The last window of a file ends with it."""
    of_split = store.rows[store.rows.split == split]
    files = of_split.drop_duplicates(["shard", "offset"])
    parts = []
    for number, row in enumerate(files.to_dict("records")):
        total, fps = int(row["file_frames"]), float(row["fps"])
        length = min(total, max(LEAST_FRAMES, round(window_s * fps)))
        step = max(1, round(step_s * fps))
        firsts = list(range(0, total - length + 1, step))
        if firsts[-1] + length < total:
            firsts.append(total - length)
        stem = str(row["id"]).rpartition("@")[0]
        for first in firsts:
            own: dict[str, Any] = {"id": f"{stem}@{first}", "label": label, "split": "val"}
            own |= {"first": first, "frames": length, "file": number}
            own |= {"start_s": first / fps, "end_s": (first + length) / fps}
            parts.append({**{str(key): value for key, value in row.items()}, **own})
    return store.with_rows(pd.DataFrame(parts))
