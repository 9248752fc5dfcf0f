"""Splits that keep a group (a person, a camera, a source video, a day) on one side.

All are functions of the clips and the seed alone: neither the order of the clips nor the machine counts.

Example:
    >>> clips = GroupedClips.of(
    ...     ids=["a1", "b1", "a2", "b2", "a3", "b3"],
    ...     groups=["ann", "ann", "bob", "bob", "eve", "eve"],
    ...     labels=["run", "walk", "run", "walk", "run", "walk"],
    ... )
    >>> [fold.test_groups for fold in grouped_folds(clips, "leave_one_out")]
    [('ann',), ('bob',), ('eve',)]
    >>> fold = grouped_folds(clips, 3, seed=1)[0]
    >>> inner = inner_split(clips.only(fold.train), fraction=0.5)  # to tune on
    >>> len(inner.train), len(inner.test), set(inner.train) & set(fold.test)
    (2, 2, set())
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vidpipe.data.labels import label_sets
from vidpipe.errors import VidpipeError

STEPS = 2000
"""Moves of groups tried before there are said to be no such folds."""


@dataclass(frozen=True)
class GroupedClips:
    """Clips by id, with the group and the label of each, sorted by id. With `several`, a label is any
    number of classes as one text (`labels.join_labels`)."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    several: bool = False

    @classmethod
    def of(
        cls,
        ids: Iterable[str],
        groups: Iterable[str],
        labels: Iterable[str],
        several: bool = False,
    ) -> GroupedClips:
        """In any order. Raises ValueError for lengths that differ or an id that is there twice."""
        rows = sorted(zip(ids, groups, labels, strict=True))
        if len({row[0] for row in rows}) < len(rows):
            raise ValueError("an id is there twice")
        ids, groups, labels = (tuple(row[i] for row in rows) for i in range(3))
        return cls(ids, groups, labels, several)

    def pairs(self) -> tuple[list[str], list[str]]:
        """Groups and classes: a pair for each class of each clip."""
        sets = label_sets(self.labels, self.several)
        groups = [group for group, own in zip(self.groups, sets, strict=True) for _ in own]
        return groups, [name for own in sets for name in own]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, ids: Collection[str]) -> GroupedClips:
        """Those with these ids. Raises KeyError for an id that is not among them."""
        wanted = set(ids)
        if unknown := wanted - set(self.ids):
            raise KeyError(min(unknown))
        rows = zip(self.ids, self.groups, self.labels, strict=True)
        ids_, groups, labels = zip(*(row for row in rows if row[0] in wanted), strict=True)
        return GroupedClips.of(ids_, groups, labels, self.several)

    def group_names(self) -> tuple[str, ...]:
        """Sorted, each once."""
        return tuple(sorted(set(self.groups)))


@dataclass(frozen=True)
class Fold:
    """The ids of one split, sorted. No group has clips in both parts, no class is tested that is not
    trained on, and neither part is empty."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    test_groups: tuple[str, ...]


def grouped_folds(
    clips: GroupedClips, folds: int | Literal["leave_one_out"], seed: int = 0
) -> list[Fold]:
    """Folds in which each clip is a test clip exactly once.

    Args:
        clips: all clips of the study.
        folds: a number, for folds of about as many clips of each class
            (`sklearn.model_selection.StratifiedGroupKFold`, then mended where a class or a fold came
            off empty), or `leave_one_out`, a fold a group, sorted by name (`LeaveOneGroupOut`).
        seed: of the draw; without effect on `leave_one_out`.

    Raises VidpipeError for fewer groups than folds and for a group that holds all clips of a class.
    """
    names = clips.group_names()
    if folds != "leave_one_out" and folds < 2:
        raise VidpipeError(f"folds: {folds}; expected at least 2, or leave_one_out")
    wanted = 2 if folds == "leave_one_out" else folds
    if len(names) < wanted:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise VidpipeError(
            f"folds: {wanted} folds need as many groups, and the {len(clips)} clips have {len(names)} "
            f"({listed}); ask for fewer folds, or set data.group to something finer"
        )
    _refuse_class_of_one_group(clips)
    if folds == "leave_one_out":
        place = {name: i for i, name in enumerate(names)}
    else:
        place = dict(zip(names, _balanced(clips, names, folds, seed).tolist(), strict=True))
    return [
        _fold(clips, {name for name in names if place[name] == fold})
        for fold in range(max(place.values()) + 1)
    ]


def inner_split(clips: GroupedClips, fraction: float = 0.2, seed: int = 0) -> Fold:
    """One split by groups of a fold's training part, to tune on: `test` has about `fraction` of each
    class. A class with a single group is trained on only.

    Raises VidpipeError where no group can be spared.
    """
    held_out = held_out_groups(*clips.pairs(), fraction, seed)
    if not held_out:
        count = len(clips.group_names())
        raise VidpipeError(
            f"data.group: none of {count} groups can be held out, or a class would lose all of its "
            "clips; set data.group to something finer"
        )
    return _fold(clips, held_out)


def training_part(clips: GroupedClips, fraction: float, seed: int = 0) -> tuple[str, ...]:
    """Ids of the clips of `fraction` of the groups, for a learning curve.

    Parts are nested: of equal seed, the smaller is within the larger. Each class has a clip in every
    one of them, so that the smallest may have more groups than its fraction.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}, expected more than 0 and at most 1")
    labels: dict[str, set[str]] = defaultdict(set)
    for group, label in zip(*clips.pairs(), strict=True):
        labels[group].add(label)
    order = _drawn(clips.group_names(), seed)
    seen: set[str] = set()
    first = []
    for group in order:
        if not labels[group] <= seen:
            first.append(group)
            seen |= labels[group]
    order = first + [group for group in order if group not in set(first)]
    chosen = set(order[: max(len(first), round(fraction * len(order)))])
    rows = zip(clips.ids, clips.groups, strict=True)
    return tuple(id_ for id_, group in rows if group in chosen)


def held_out_groups(
    groups: Sequence[str], labels: Sequence[str], fraction: float, seed: int
) -> set[str]:
    """Groups that have together about `fraction` of the clips of each class.

    No class loses all of its clips; each that has several groups is held out from, where that can be.
    Empty where no group can be spared. One pass: 240,000 clips take a second.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        counts[group][label] += 1
    total, held = Counter(labels), Counter[str]()
    order = _drawn(counts, seed)

    def spared(group: str) -> bool:
        return all(held[label] + n < total[label] for label, n in counts[group].items())

    def worse(group: str) -> float:
        """By how much the distance to the shares that are wanted grows when the group is held out."""
        return sum(
            ((held[label] + n) / total[label] - fraction) ** 2
            - (held[label] / total[label] - fraction) ** 2
            for label, n in counts[group].items()
        )

    chosen: set[str] = set()

    def take(group: str) -> None:
        chosen.add(group)
        held.update(counts[group])

    for group in order:
        if worse(group) < 0 and spared(group):
            take(group)
    by_label: dict[str, list[str]] = defaultdict(list)
    for group in order:
        for label in counts[group]:
            by_label[label].append(group)
    for label in sorted(total):
        if not held[label] and (able := [group for group in by_label[label] if spared(group)]):
            take(min(able, key=worse))
    return chosen


def _drawn(groups: Iterable[str], seed: int) -> list[str]:
    """In an order of chance, which a group's place in does not depend on the others."""
    return sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def _fold(clips: GroupedClips, held_out: set[str]) -> Fold:
    rows = list(zip(clips.ids, clips.groups, strict=True))
    return Fold(
        tuple(id_ for id_, group in rows if group not in held_out),
        tuple(id_ for id_, group in rows if group in held_out),
        tuple(sorted(held_out)),
    )


def _refuse_class_of_one_group(clips: GroupedClips) -> None:
    groups: dict[str, set[str]] = defaultdict(set)
    pairs = clips.pairs()
    for group, label in zip(*pairs, strict=True):
        groups[label].add(group)
    alone = sorted(label for label, found in groups.items() if len(found) == 1)
    if alone:
        others = f" (and so do {len(alone) - 1} other classes)" if len(alone) > 1 else ""
        raise VidpipeError(
            f"data.group: group {min(groups[alone[0]])!r} holds all "
            f"{pairs[1].count(alone[0])} clips of class {alone[0]!r}{others}, which can then not be "
            "trained on and tested; leave the class out, or set data.group to something finer"
        )


def _balanced(
    clips: GroupedClips, names: Sequence[str], folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each group of `names`."""
    # Here, for `import vidpipe` and the command line need it not.
    from sklearn.model_selection import StratifiedGroupKFold

    number = {name: i for i, name in enumerate(names)}
    groups, labels = clips.pairs()
    _, label = np.unique(labels, return_inverse=True)
    group = np.array([number[name] for name in groups])
    # Of groups whose clips have no class, and where there is nothing to balance, which scikit-learn
    # refuses.
    place = np.empty(len(names), np.int64)
    place[[number[name] for name in _drawn(names, seed)]] = np.arange(len(names)) % folds
    if folds <= np.bincount(label).max():
        draw = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=draw)
        with warnings.catch_warnings():  # of classes that have fewer clips than there are folds
            warnings.simplefilter("ignore", UserWarning)
            for fold, (_, test) in enumerate(split.split(label, label, group)):
                place[group[test]] = fold
    counts = np.zeros((len(names), label.max() + 1))
    np.add.at(counts, (group, label), 1)
    return _mended(place, counts, folds, seed)


def _mended(
    place: NDArray[np.int64], counts: NDArray[np.float64], folds: int, seed: int
) -> NDArray[np.int64]:
    """Groups moved until no fold is empty and no class has all of its clips in one fold. `counts`
    (groups, classes) are clips.

    A walk as WalkSAT's (Selman et al. 1994): a class that is at fault gives one of its groups away, half
    of the time by the move that leaves least faults and the folds most alike, else by any.
    """
    rng = np.random.default_rng(seed)
    place = place.copy()
    for _ in range(STEPS):
        faulty = _faults(place, counts, folds)[2]
        if not faulty.any():
            return place
        of_class = (
            counts[:, rng.choice(np.flatnonzero(faulty[:-1]))]
            if faulty[:-1].any()
            else counts.sum(1)
        )
        movable = np.flatnonzero(of_class).tolist()
        moves = [(g, f) for g in movable for f in range(folds) if f != place[g]]
        if rng.random() < 0.5:
            group, fold = moves[rng.integers(len(moves))]
        else:
            group, fold = min(moves, key=lambda move: _faults(place, counts, folds, move)[:2])
        place[group] = fold
    raise VidpipeError(
        f"folds: found no {folds} folds of {len(place)} groups in which each class that is tested is "
        "trained on, as too many groups share rare classes; ask for fewer folds, or for leave_one_out"
    )


def _faults(
    place: NDArray[np.int64],
    counts: NDArray[np.float64],
    folds: int,
    move: tuple[int, int] | None = None,
) -> tuple[int, float, NDArray[np.bool_]]:
    """Of the folds after `move` (group, fold): how many faults, how unlike the folds are, and which
    classes are confined to one fold; last, whether a fold is empty."""
    if move is not None:
        place = place.copy()
        place[move[0]] = move[1]
    clips = np.zeros((folds, counts.shape[1]))
    np.add.at(clips, place, counts)
    empty = folds - len(np.unique(place))
    confined = (clips > 0).sum(0) == 1
    unlike = float((clips / counts.sum(0)).std(0).mean())
    return int(confined.sum()) + empty, unlike, np.append(confined, empty > 0)
