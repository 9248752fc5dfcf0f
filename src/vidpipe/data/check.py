"""What is wrong with a data set before a model is trained on it: clips and groups on both sides of a
split, copies that disagree about their label, classes that no split by groups can serve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vidpipe.data.fingerprint import Fingerprint, fingerprint, small_frames
from vidpipe.data.folds import GroupedClips
from vidpipe.data.labels import label_sets
from vidpipe.data.near_duplicates import Pair
from vidpipe.video.store import FrameStore, Manifest

PROBLEMS = {
    "copy_across_splits": "the same footage in train and val: what is measured is memory",
    "copy_across_groups": "the same footage in two groups: folds by group would part them",
    "label_conflict": "equal clips with different labels",
    "group_across_splits": "a group with clips in train and val",
    "class_of_one_group": "a class that no split by groups can train on and test",
}
"""Kind of finding -> what it means; a strict check fails for each of them."""
NOTES = {
    "copy_within_split": "the same footage twice on one side",
    "same_bytes": "equal files, of which extraction kept the first",
}
COLUMNS = (
    *("kind", "first", "second", "first_split", "second_split", "first_label", "second_label"),
    *("first_group", "second_group", "mirrored", "similarity", "shared", "offset_s", "clips"),
)
MOST_FRAMES = 10_000
"""Of a clip that are looked at, from its first on."""
_CHUNK = 256


class FingerprintedClips(Dataset[Fingerprint]):
    """The clips of a store by row number, for loader processes."""

    def __init__(self, store: FrameStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def small(self, clip: int) -> NDArray[np.uint8]:
        """`small_frames` of a row, read piece by piece: a long clip would not fit in memory."""
        length = min(self.store.num_frames(clip), MOST_FRAMES)
        starts = range(0, length, _CHUNK)
        pieces = (self.store.read(clip, range(s, min(s + _CHUNK, length))) for s in starts)
        return np.concatenate([small_frames(piece) for piece in pieces])

    def __getitem__(self, clip: int) -> Fingerprint:
        return fingerprint(self.small(clip), float(self.store.rows.fps[clip]))


def findings(manifest: Manifest, clips: GroupedClips, pairs: Iterable[Pair]) -> pd.DataFrame:
    """All that was found, a row each, problems first, as PROBLEMS and NOTES list their kinds.

    Args:
        manifest: of the store, all rows.
        clips: of `store_clips`.
        pairs: near-duplicates, by position among the usable rows of the manifest.

    Returns columns COLUMNS: `first` and `second` are ids of clips (a group or a class: its name); in a
    copy `clips` is 2. What does not apply is missing.
    """
    groups = dict(zip(clips.ids, clips.groups, strict=True))
    rows = manifest.rows.assign(group=[groups.get(id_, "") for id_ in manifest.rows.id])
    usable = rows[rows.status == "ok"].reset_index(drop=True)
    # Where each video is a group of its own, every pair is of two groups, and none is to be parted.
    grouped = len(set(clips.groups)) < len(clips)
    several = manifest.task == "multilabel"
    found = [*_copies(usable, pairs, grouped), *_same_bytes(rows), *_groups(usable, several)]
    table = pd.DataFrame.from_records(found, columns=list(COLUMNS))
    order = {kind: place for place, kind in enumerate([*PROBLEMS, *NOTES])}
    return table.sort_values(
        ["kind", "similarity", "first", "second"],
        key=lambda column: column.map(order) if column.name == "kind" else column,
        ascending=[True, False, True, True],
        kind="stable",
        ignore_index=True,
    )


def _both(kind: str, one: Any, other: Any, **more: Any) -> dict[str, Any]:
    shown = {
        f"{side}_{name}": getattr(row, name)
        for side, row in (("first", one), ("second", other))
        for name in ("split", "label", "group")
    }
    return {"kind": kind, "first": one.id, "second": other.id, "clips": 2, **shown, **more}


def _copies(usable: pd.DataFrame, pairs: Iterable[Pair], grouped: bool) -> Iterable[dict[str, Any]]:
    row: list[Any] = list(usable.itertuples())
    for pair in pairs:
        one, other = row[pair.first], row[pair.second]
        measured = {
            "mirrored": pair.mirrored,
            "similarity": pair.similarity,
            "shared": pair.shared,
            "offset_s": pair.offset_s,
        }
        if one.split != other.split:
            kind = "copy_across_splits"
        elif grouped and one.group != other.group:
            kind = "copy_across_groups"
        else:
            kind = "copy_within_split"
        yield _both(kind, one, other, **measured)
        # A mirror image may well be of another class: left and right.
        if one.label != other.label and not pair.mirrored:
            yield _both("label_conflict", one, other, **measured)


def _same_bytes(rows: pd.DataFrame) -> Iterable[dict[str, Any]]:
    kept: dict[str, Any] = {str(row.sha256): row for row in rows[rows.status == "ok"].itertuples()}
    copies: Iterable[Any] = rows[rows.reason == "duplicate"].itertuples()
    for copy in copies:
        if (first := kept.get(copy.sha256)) is None:
            continue
        measured = {"mirrored": False, "similarity": 1.0, "shared": 1.0, "offset_s": 0.0}
        yield _both("same_bytes", first, copy, **measured)
        if first.label != copy.label:
            yield _both("label_conflict", first, copy, **measured)


def _groups(usable: pd.DataFrame, several: bool) -> Iterable[dict[str, Any]]:
    for name, found in usable.groupby("group", sort=True):
        if found.split.nunique() > 1:
            yield {"kind": "group_across_splits", "first": name, "clips": len(found)}
    sets = label_sets(usable.label.tolist(), several)
    each = usable.assign(label=pd.Series(sets, usable.index, dtype=object)).explode("label")
    for label, found in each.groupby("label", sort=True):
        if found.group.nunique() == 1:
            group = found.group.iloc[0]
            yield {
                **{"kind": "class_of_one_group", "first": label, "first_group": group},
                "clips": len(found),
            }


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Findings of every kind, also of those of which there is none."""
    found = table.kind.value_counts()
    return {kind: int(found.get(kind, 0)) for kind in (*PROBLEMS, *NOTES)}


def side_by_side(
    read: Callable[[int, Sequence[int]], NDArray[np.uint8]],
    lengths: tuple[int, int],
    fps: tuple[float, float],
    pair: Pair,
    frames: int = 8,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames of both clips of a pair at the same moments of what they share: (T, H, W, 3) each."""
    rates = [rate if rate > 0 else 25.0 for rate in fps]
    start = max(0.0, pair.offset_s)
    end = min(lengths[0] / rates[0], lengths[1] / rates[1] + pair.offset_s)
    moments = np.linspace(start, max(start, end), frames, endpoint=False)
    at = [
        ((moments - shift) * rate).round().astype(int).clip(0, length - 1).tolist()
        for shift, rate, length in zip((0.0, pair.offset_s), rates, lengths, strict=True)
    ]
    return read(pair.first, at[0]), read(pair.second, at[1])
