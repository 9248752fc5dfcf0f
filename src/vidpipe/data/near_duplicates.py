"""Pairs of clips that show the same: candidates by their hashes, each then compared frame by frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from vidpipe.data.fingerprint import BITS, STILL, Fingerprint

TABLES, KEY_BITS = 16, 18
"""Lookups, each by so many of the hash's bits, and by more among many hashes: what meets by chance grows
with the clips then, and not with their square. Two hashes of which a tenth of the bits differ meet in
one of them with probability 0.93; two of which half do, with 6e-5."""
NEIGHBOURS = 32
"""Hashes of one key that are compared with each other; of more, each with the next so many."""
FARTHEST = 18
"""Bits that the hashes of a candidate may differ in."""
OFFSETS = 8
"""Alignments in time of a candidate that are tried."""
NEAR_S = 0.03
"""Seconds between alignments that are one and the same."""
LEAST_FRAMES, LEAST_SHARE = 8, 0.5
"""What two copies must have in common, the share being of the shorter one."""
SURE = 0.99
"""A similarity that is not sought to be raised."""
SAME_MOTION, SAME_PICTURE = 0.95, 0.9
"""Correlations from which on two clips show the same: of what moves, and of what it moves before."""


@dataclass(frozen=True)
class Pair:
    """Clips `first` < `second` (positions) show the same, the second perhaps `mirrored`.

    `similarity`: the correlation of what moves (of still clips, of the pictures). `offset_s`: when, in
    the first, the second begins. `shared`: what they have in common, of the shorter one's time.
    """

    first: int
    second: int
    mirrored: bool
    similarity: float
    offset_s: float
    shared: float


Candidates = dict[tuple[int, int, bool], list[float]]
"""(first, second, mirrored) -> offsets in seconds, most often found first."""


def candidates(prints: Sequence[Fingerprint], seed: int = 0) -> Candidates:
    """Pairs of clips of which some hashes are near each other. Not all are compared with all: the time
    is that of `TABLES` sorts and at most `TABLES * NEIGHBOURS` comparisons a hash."""
    clip = np.concatenate([np.full(len(p.times), i) for i, p in enumerate(prints)])
    time = np.concatenate([p.times for p in prints])
    hashes = np.concatenate([p.hashes for p in prints], axis=1)
    count = len(clip)
    both = hashes.reshape(-1)
    clip, time = np.tile(clip, 2), np.tile(time, 2)
    bits = max(KEY_BITS, len(both).bit_length() + 3)
    rng = np.random.default_rng(seed)
    found: set[tuple[int, int]] = set()
    for _ in range(TABLES):
        key = np.zeros(len(both), np.uint64)
        for place, bit in enumerate(rng.choice(BITS, bits, replace=False)):
            key |= (both >> np.uint64(bit) & np.uint64(1)) << np.uint64(place)
        order = np.argsort(key, kind="stable")
        sorted_key = key[order]
        for shift in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            at = np.flatnonzero(sorted_key[shift:] == sorted_key[:-shift])
            if not len(at):
                break
            one, other = order[at], order[at + shift]
            one, other = np.minimum(one, other), np.maximum(one, other)
            good = (clip[one] != clip[other]) & (one < count)  # not both mirrored
            one, other = one[good], other[good]
            near = _bits_of(both[one] ^ both[other]) <= FARTHEST
            found.update(zip(one[near].tolist(), other[near].tolist(), strict=True))
    votes: dict[tuple[int, int, bool], list[float]] = defaultdict(list)
    for i, j in sorted(found):
        a, b, lag = int(clip[i]), int(clip[j]), float(time[i] - time[j])
        if a > b:
            a, b, lag = b, a, -lag
        votes[a, b, j >= count].append(lag)
    return {pair: _commonest(lags) for pair, lags in sorted(votes.items())}


_BITS_OF_16 = np.array([bin(i).count("1") for i in range(2**16)], np.uint8)


def _bits_of(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return _BITS_OF_16[words.view(np.uint16).reshape(-1, 4)].sum(1, dtype=np.uint8)


def _commonest(lags: list[float]) -> list[float]:
    """By how many lie within a frame or so of each."""
    values = np.array(lags)
    support = (np.abs(values[:, None] - values) < NEAR_S).sum(1)
    chosen: list[float] = []
    for i in np.argsort(-support, kind="stable"):
        if all(abs(values[i] - other) >= NEAR_S for other in chosen):
            chosen.append(float(values[i]))
    return chosen[:OFFSETS]


def confirmed(
    found: Candidates,
    small: Callable[[int], NDArray[np.uint8]],
    fps: Sequence[float],
    least: float = SAME_MOTION,
) -> Iterator[Pair]:
    """The candidates that hold frame by frame. `small(i)`: the `small_frames` of clip i."""
    for (a, b, mirrored), lags in found.items():
        one, other = small(a), small(b)
        if mirrored:
            other = other[:, :, ::-1]
        rates = [rate if rate > 0 else 25.0 for rate in (fps[a], fps[b])]
        similarity, shared, offset = compare(one, other, rates, lags)
        if similarity >= least:
            yield Pair(a, b, mirrored, similarity, offset, shared)


def compare(
    one: NDArray[np.uint8], other: NDArray[np.uint8], fps: Sequence[float], lags: Sequence[float]
) -> tuple[float, float, float]:
    """(similarity, shared, offset) of the best alignment among `lags`, or a frame from the best of them;
    similarity 0 where they show something else."""
    best = (0.0, 0.0, 0.0)
    for offset in lags:
        best = max(best, _aligned(one, other, fps, offset))
    lag = best[2]
    for step in (-1, 1, -0.5, 0.5):
        if not 0 < best[0] < SURE:
            break
        best = max(best, _aligned(one, other, fps, lag + step / max(fps)))
    return best


def _aligned(
    one: NDArray[np.uint8], other: NDArray[np.uint8], fps: Sequence[float], offset: float
) -> tuple[float, float, float]:
    at = (np.arange(len(one)) / fps[0] - offset) * fps[1]
    mine = np.flatnonzero((at >= -0.25) & (at <= len(other) - 0.75))
    shared = len(mine) / fps[0] / min(len(one) / fps[0], len(other) / fps[1])
    if len(mine) < LEAST_FRAMES or shared < LEAST_SHARE:
        return 0.0, 0.0, 0.0
    similarity = _similarity(one[mine].astype(np.float32), _between(other, at[mine]))
    return similarity, min(1.0, shared), offset


def _between(frames: NDArray[np.uint8], at: NDArray[np.float64]) -> NDArray[np.float32]:
    at = at.clip(0, len(frames) - 1)
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float32)[:, None, None]
    high = np.minimum(low + 1, len(frames) - 1)
    return frames[low] * (1 - share) + frames[high] * share


def _similarity(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of frames that are aligned, (T, SIDE, SIDE); 0 where they show something else.

    Pixels count by how much they move, and moments are blurred a little: what encoding adds is spread
    over the whole picture and is another in each frame.
    """
    still_one, still_other = one.mean(0), other.mean(0)
    picture = _correlation(still_one - still_one.mean(), still_other - still_other.mean())
    if picture < SAME_PICTURE:
        return 0.0
    spread = one.std(0), other.std(0)
    if max(float(np.square(s).mean()) for s in spread) < STILL**2:
        return picture if np.abs(one - other).mean() < 4 * STILL else 0.0
    weight = np.sqrt(spread[0] * spread[1])
    moving = [
        convolve1d((part - part.mean(0)) * weight, [0.25, 0.5, 0.25], axis=0, mode="nearest")
        for part in (one, other)
    ]
    return max(0.0, _correlation(*moving))


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum() / norm) if norm else 1.0 if not a.any() and not b.any() else 0.0
