"""Folds and splits by group: what holds for every data set, and what is refused in one line."""

from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.data import folds
from vidpipe.data.folds import (
    Fold,
    GroupedClips,
    grouped_folds,
    held_out_groups,
    inner_split,
    training_part,
)
from vidpipe.errors import VidpipeError

PEOPLE = "daria denis eli ido ira lena lyova moshe shahar".split()  # noqa: SIM905
ACTIONS = "bend jack jump".split()  # noqa: SIM905
NINE = GroupedClips.of(
    [f"{action}/{person}" for action in ACTIONS for person in PEOPLE],
    [person for _ in ACTIONS for person in PEOPLE],
    [action for action in ACTIONS for _ in PEOPLE],
)


@st.composite
def clips_in_groups(draw: st.DrawFn) -> GroupedClips:
    """Each class in two groups at least."""
    groups = draw(st.integers(2, 8))
    pairs = set()
    for label in range(draw(st.integers(1, 5))):
        own = draw(st.sets(st.integers(0, groups - 1), min_size=2))
        pairs |= {(group, label, n) for group in own for n in range(draw(st.integers(1, 3)))}
    rows = draw(st.permutations(sorted(pairs)))
    return GroupedClips.of(
        [f"v{g}-{c}-{n}" for g, c, n in rows],
        [f"g{g}" for g, _, _ in rows],
        [f"c{c}" for _, c, _ in rows],
    )


def is_a_split(clips: GroupedClips, fold: Fold) -> None:
    group = dict(zip(clips.ids, clips.groups, strict=True))
    label = dict(zip(clips.ids, clips.labels, strict=True))
    assert sorted(fold.train + fold.test) == list(clips.ids)
    assert fold.train
    assert fold.test
    assert {group[i] for i in fold.test} == set(fold.test_groups)
    assert not {group[i] for i in fold.train} & set(fold.test_groups)
    assert {label[i] for i in fold.test} <= {label[i] for i in fold.train}


def groups_of(clips: GroupedClips, label: str) -> int:
    return len({g for g, c in zip(clips.groups, clips.labels) if c == label})


def can_be(clips: GroupedClips, folds: int) -> bool:
    """By trying all ways to put the groups into folds."""
    names = clips.group_names()
    where = np.indices([folds] * len(names), dtype=np.int8).reshape(len(names), -1)
    good = np.all([(where == fold).any(0) for fold in range(folds)], 0)
    for label in set(clips.labels):
        own = [names.index(g) for g, c in zip(clips.groups, clips.labels) if c == label]
        good &= (where[own] != where[own[0]]).any(0)
    return bool(good.any())


@settings(max_examples=150, deadline=None)
@given(clips_in_groups(), st.integers(2, 5), st.integers(0, 2**63 - 1))
def test_every_clip_is_a_test_clip_once(clips: GroupedClips, wanted: int, seed: int) -> None:
    try:
        found = grouped_folds(clips, wanted, seed)
    except VidpipeError:
        found = []
    assert bool(found) == can_be(clips, wanted)
    if not found:
        return
    assert len(found) == wanted
    assert Counter(i for fold in found for i in fold.test) == Counter(clips.ids)
    for fold in found:
        is_a_split(clips, fold)
    assert found == grouped_folds(clips, wanted, seed)


@settings(max_examples=50, deadline=None)
@given(clips_in_groups(), st.floats(0.05, 0.95), st.integers(0, 99))
def test_leaving_one_out_and_inner_splits(clips: GroupedClips, part: float, seed: int) -> None:
    found = grouped_folds(clips, "leave_one_out")
    assert [fold.test_groups for fold in found] == [(name,) for name in clips.group_names()]
    for fold in found:
        is_a_split(clips, fold)
        training = clips.only(fold.train)
        if held_out_groups(training.groups, training.labels, part, seed):
            inner = inner_split(training, part, seed)
            is_a_split(training, inner)
            assert not set(fold.test) & {*inner.train, *inner.test}
        else:  # each group has all of some class
            alone = {label for label in training.labels if groups_of(training, label) == 1}
            assert {g for g, c in zip(training.groups, training.labels) if c in alone} == set(
                training.groups
            )


@settings(max_examples=50, deadline=None)
@given(clips_in_groups(), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
def test_parts_for_learning_curves_are_nested(
    clips: GroupedClips, one: float, other: float, seed: int
) -> None:
    small, large = (set(training_part(clips, f, seed)) for f in sorted((one, other)))
    assert small <= large <= set(training_part(clips, 1.0, seed)) == set(clips.ids)
    assert set(clips.only(small).labels) == set(clips.labels)
    whole = [i for i, g in zip(clips.ids, clips.groups) if g in clips.only(small).groups]
    assert small == set(whole)


def test_nine_people_in_three_folds_and_a_quarter_of_them() -> None:
    found = grouped_folds(NINE, 3, seed=0)
    assert [len(fold.test_groups) for fold in found] == [3, 3, 3]
    for fold in found:
        assert Counter(i.split("/")[0] for i in fold.test) == dict.fromkeys(ACTIONS, 3)
    assert grouped_folds(NINE, 3, seed=1) != found
    assert len(NINE.only(training_part(NINE, 0.25)).group_names()) == 2
    assert len(NINE.only(training_part(NINE, 0.5)).group_names()) == 4
    assert len(inner_split(NINE, 0.2).test_groups) == 2
    # What a study was made of must not change with a release.
    assert [fold.test_groups for fold in found] == PINNED_FOLDS
    assert inner_split(NINE, 0.2).test_groups == PINNED_INNER
    assert NINE.only(training_part(NINE, 0.25)).group_names() == PINNED_PART


PINNED_FOLDS = [("daria", "lyova", "moshe"), ("denis", "ido", "shahar"), ("eli", "ira", "lena")]
PINNED_INNER = ("eli", "moshe")
PINNED_PART = ("eli", "moshe")


def test_folds_are_balanced_where_classes_are_not() -> None:
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 40, 800), rng.choice(3, 800, p=[0.8, 0.15, 0.05])
    clips = GroupedClips.of(map(str, range(800)), map(str, group), map(str, label))
    total = Counter(clips.labels)
    for fold in grouped_folds(clips, 5):
        shares = Counter(clips.only(fold.test).labels)
        assert {c: shares[c] / total[c] for c in total} == pytest.approx(
            dict.fromkeys(total, 0.2), abs=0.06
        )
    inner = Counter(clips.only(inner_split(clips, 0.3).test).labels)
    assert {c: inner[c] / total[c] for c in total} == pytest.approx(
        dict.fromkeys(total, 0.3), abs=0.06
    )


def test_a_class_that_comes_off_in_one_fold_is_spread() -> None:
    """scikit-learn alone puts both groups of a rare class into one fold here, for some seed."""
    groups = [f"g{i}" for i in range(8)]
    ids = [f"{g}-{n}" for g in groups for n in range(5)]
    label = ["rare" if i in ("g0-0", "g1-0") else "often" for i in ids]
    clips = GroupedClips.of(ids, [i.split("-")[0] for i in ids], label)
    for seed in range(40):
        for fold in grouped_folds(clips, 4, seed):
            is_a_split(clips, fold)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (10, r"10 folds need as many groups, and the 27 clips have 9 \(daria, denis, .*, \.\.\.\)"),
        (1, "folds: 1; expected at least 2"),
    ],
)
def test_folds_that_cannot_be(wanted: int, message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        grouped_folds(NINE, wanted)


@pytest.mark.parametrize("wanted", [2, "leave_one_out"])
def test_a_group_that_holds_a_class(wanted: int) -> None:
    clips = GroupedClips.of("abcde", "xxyyx", ["run", "run", "run", "walk", "run"])
    with pytest.raises(VidpipeError, match=r"group 'y' holds all 1 clips of class 'walk'") as error:
        grouped_folds(clips, wanted)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    # A split of a large data set with a rare class trains on it.
    assert held_out_groups(clips.groups, clips.labels, 0.3, 0) == {"x"}


def test_one_group_is_no_split() -> None:
    with pytest.raises(VidpipeError, match="none of 1 groups can be held out"):
        inner_split(GroupedClips.of("ab", "xx", "cd"))
    with pytest.raises(VidpipeError, match="2 folds need as many groups"):
        grouped_folds(GroupedClips.of("ab", "xx", "cd"), "leave_one_out")


def test_clips_are_told_apart_by_id() -> None:
    with pytest.raises(ValueError, match="twice"):
        GroupedClips.of("aa", "xy", "cd")
    with pytest.raises(KeyError, match="z"):
        NINE.only(["z"])


def test_the_example() -> None:
    assert doctest.testmod(folds).failed == 0


def test_clips_with_several_classes_or_none_keep_every_class_on_both_sides() -> None:
    """Also classes that only ever occur together with others, and groups whose clips have none."""
    labels = ["a", "a|b", "", "b|c", "c", "", "a|c", ""]
    groups = [f"g{i // 2}" for i in range(16)]
    clips = GroupedClips.of(map(str, range(100, 116)), groups, labels * 2, several=True)
    for found in (grouped_folds(clips, 3, seed=0), [inner_split(clips, 0.3)]):
        for fold in found:
            for ids in (fold.train, fold.test):
                own = clips.only(ids)
                assert set(own.pairs()[1]) == {"a", "b", "c"}
                assert not set(own.groups) & (set(clips.groups) - set(own.groups))
    assert sorted(i for fold in grouped_folds(clips, 3) for i in fold.test) == sorted(clips.ids)
    alone = GroupedClips.of("abcd", "xxyz", ["a|b", "a", "a", ""], several=True)
    with pytest.raises(VidpipeError, match="'x' holds all 1 clips of class 'b'"):
        grouped_folds(alone, 2)
    assert training_part(clips, 0.25)
