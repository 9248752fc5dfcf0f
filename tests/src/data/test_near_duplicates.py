"""Copies are found however they were made, and nothing else is, though one camera filmed all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from one_camera import filmed

from vidpipe.data.check import counts, findings, side_by_side
from vidpipe.data.fingerprint import BITS, Fingerprint, fingerprint, small_frames
from vidpipe.data.folds import GroupedClips
from vidpipe.data.near_duplicates import Pair, candidates, compare, confirmed
from vidpipe.video.store import Manifest

CLIPS = [small_frames(filmed(seed)) for seed in range(12)]


def alike(clips: list[np.ndarray], fps: list[float] | None = None) -> list[Pair]:
    rates = fps or [25.0] * len(clips)
    prints = [fingerprint(small, rate) for small, rate in zip(clips, rates, strict=True)]
    return list(confirmed(candidates(prints), clips.__getitem__, rates))


def test_clips_of_one_camera_are_no_copies() -> None:
    assert alike(CLIPS) == []


def noisy(small: np.ndarray, scale: float = 3) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, scale, small.shape)
    return (small + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "mirrored", "offset", "shared"),
    [
        (lambda s: s, False, 0.0, 1.0),
        (noisy, False, 0.0, 1.0),
        (lambda s: s // 2 + 60, False, 0.0, 1.0),  # paler
        (lambda s: s[:, :, ::-1], True, 0.0, 1.0),
        (lambda s: s[12:], False, 12 / 25, 1.0),
        (lambda s: s[:26], False, 0.0, 1.0),
        (lambda s: noisy(s)[10:34, :, ::-1], True, 10 / 25, 1.0),
    ],
)
def test_a_copy_is_found_with_its_place_in_time(change, mirrored, offset, shared) -> None:
    found = alike([*CLIPS, *(np.ascontiguousarray(change(small)) for small in CLIPS)])
    assert [(pair.first, pair.second) for pair in found] == [(i, i + 12) for i in range(12)]
    for pair in found:
        assert pair.mirrored == mirrored
        assert pair.offset_s == pytest.approx(offset, abs=0.021)
        assert pair.shared == pytest.approx(shared, abs=0.05)
        assert pair.similarity > 0.95


def test_two_cuts_of_one_film_and_another_rate() -> None:
    found = alike([*(small[:28] for small in CLIPS), *(small[12:] for small in CLIPS)])
    assert [(p.first, p.second) for p in found] == [(i, i + 12) for i in range(12)]
    assert all(pair.shared == pytest.approx(16 / 28, abs=0.05) for pair in found)
    # Less than half in common is no copy.
    assert alike([*(small[:24] for small in CLIPS), *(small[16:] for small in CLIPS)]) == []
    films = [filmed(seed, 80) for seed in range(4)]
    slow = [small_frames(film[::2]) for film in films]
    found = alike([*map(small_frames, films), *slow], [25.0] * 4 + [12.5] * 4)
    assert [(p.first, p.second) for p in found] == [(i, i + 4) for i in range(4)]


def test_clips_in_which_nothing_moves() -> None:
    rng = np.random.default_rng(3)
    pictures = [np.kron(rng.uniform(40, 200, (4, 4)), np.ones((8, 8))) for _ in range(6)]
    still = [np.repeat(p[None].astype(np.uint8), 20, 0) for p in pictures]
    assert alike(still) == []
    found = alike([*still, *(noisy(s, 0.6)[:, :, ::-1] for s in still[:2])])
    assert [(p.first, p.second, p.mirrored) for p in found] == [(0, 6, True), (1, 7, True)]
    # Of one frame and none to compare; grey, without any frequency.
    assert alike([still[0][:1], still[0][:1]]) == []
    grey = np.full((20, 32, 32), 128, np.uint8)
    assert len(alike([grey, grey])) <= 2


def test_large_buckets_are_not_compared_with_all() -> None:
    """A thousand clips of the same hash: each meets its neighbours only."""
    one = fingerprint(CLIPS[0], 25.0)
    same = Fingerprint(one.hashes[:, :1], one.times[:1])
    found = candidates([same] * 1000)
    assert 900 < len(found) < 1000 * 70


def test_what_meets_by_chance_grows_with_the_clips_and_not_with_their_square() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**BITS, (16000, 2, 3), np.uint64)
    random = [Fingerprint(own, np.arange(3.0)) for own in hashes]
    assert len(candidates(random[:900])) < 900
    some, many = (len(candidates(random[:n])) for n in (4000, 16000))
    assert 0 < many < 8 * some  # 16 were the square


def test_an_alignment_needs_enough_in_common() -> None:
    small = CLIPS[0]
    assert compare(small, small, [25.0, 25.0], [0.0])[0] == pytest.approx(1)
    assert compare(small, small, [25.0, 25.0], [1.0])[0] == 0
    assert compare(small, CLIPS[1], [25.0, 25.0], [0.0])[0] < 0.8


ROWS = [
    # id, label, split, group, status, bytes
    ("a", "run", "train", "ann", "ok", "1"),
    ("b", "run", "val", "bob", "ok", "2"),
    ("c", "walk", "train", "bob", "ok", "3"),
    ("d", "walk", "train", "eve", "ok", "4"),
    ("e", "swim", "train", "ann", "ok", "5"),
    ("f", "swim", "train", "ann", "ok", "6"),
    ("g", "walk", "val", "ann", "duplicate", "1"),
    ("h", "run", "val", "bob", "duplicate", "2"),
    ("i", "run", "val", "bob", "too_short", "7"),
]


def pair(first: int, second: int, mirrored: bool = False) -> Pair:
    return Pair(first, second, mirrored, 0.97, 0.0, 1.0)


def found_in(pairs: list[Pair], grouped: bool = True) -> list[tuple[str, str, object]]:
    rows = pd.DataFrame(
        {
            "id": [row[0] for row in ROWS],
            "label": [row[1] for row in ROWS],
            "split": [row[2] for row in ROWS],
            "status": ["ok" if row[4] == "ok" else "quarantined" for row in ROWS],
            "reason": ["" if row[4] == "ok" else row[4] for row in ROWS],
            "sha256": [row[5] for row in ROWS],
        }
    )
    ok = [row for row in ROWS if row[4] == "ok"]
    groups = [row[3] if grouped else row[0] for row in ok]
    clips = GroupedClips.of([r[0] for r in ok], groups, [r[1] for r in ok])
    table = findings(Manifest(rows, ("run", "swim", "walk"), "compact"), clips, pairs)
    assert counts(table)["label_conflict"] == (table.kind == "label_conflict").sum()
    table = table.astype(object).where(table.notna(), None)
    return [(r.kind, r.first, r.second) for r in table.itertuples()]


def test_every_kind_of_finding() -> None:
    always = [
        ("label_conflict", "a", "g"),  # of equal bytes
        ("group_across_splits", "bob", None),
        ("class_of_one_group", "swim", None),
        ("same_bytes", "a", "g"),
        ("same_bytes", "b", "h"),
    ]
    assert found_in([]) == always
    assert set(found_in([pair(0, 1)])) - set(always) == {("copy_across_splits", "a", "b")}
    assert set(found_in([pair(2, 3)])) - set(always) == {("copy_across_groups", "c", "d")}
    assert set(found_in([pair(4, 5)])) - set(always) == {("copy_within_split", "e", "f")}
    assert set(found_in([pair(0, 2)])) - set(always) == {
        ("copy_across_groups", "a", "c"),
        ("label_conflict", "a", "c"),
    }
    # Left mirrored is right.
    assert set(found_in([pair(0, 2, True)])) - set(always) == {("copy_across_groups", "a", "c")}


def test_videos_by_themselves_are_no_groups_to_part() -> None:
    assert ("copy_within_split", "c", "d") in found_in([pair(2, 3)], grouped=False)
    kinds = {kind for kind, _, _ in found_in([], grouped=False)}
    assert kinds == {"label_conflict", "same_bytes"}


def test_both_clips_are_shown_at_the_same_moments() -> None:
    def read(clip: int, at: list[int]) -> np.ndarray:
        return np.array(at) + (10 if clip == 1 else 0)

    # The second begins 10 frames into the first.
    one, other = side_by_side(read, (40, 30), (25.0, 25.0), Pair(0, 1, False, 1, 0.4, 1))
    assert one.tolist() == other.tolist()
    assert (min(one), max(one)) == (10, 36)
