"""The order of an epoch: each clip once, shared by any number of workers, shuffled as was asked."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.data.batches import EpochBatches, shard_order
from vidpipe.errors import VidpipeError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_workers_share_one_global_order(
    size: int, each: int, world: int, epoch: int, drop_last: bool
) -> None:
    if size < world:
        return

    def sampler(rank: int, of: int, batch_size: int) -> EpochBatches:
        made = EpochBatches(size, batch_size, 0, rank, of, drop_last=drop_last)
        made.epoch = epoch
        return made

    first = sampler(0, world, each * world)
    alone = list(sampler(0, 1, first.batch_size))
    together = [list(sampler(rank, world, each * world)) for rank in range(world)]
    assert len(alone) == len(first)
    for step, batch in enumerate(alone):
        parts = [own[step] if step < len(own) else [] for own in together]
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert len(batch) == first.size_of(step)
        sizes = {len(part) for part in parts}
        assert max(sizes) - min(sizes) <= (0 if len(batch) % world == 0 else 1)
    seen = [index for batch in alone for _, index in batch]
    assert len(seen) == len(set(seen)) == first.clips
    whole = size // first.batch_size * first.batch_size
    assert first.clips == (whole if drop_last else size)


def indices(sampler: EpochBatches) -> list[list[int]]:
    return [[i for _, i in batch] for batch in sampler]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_pairs_stay_together_whatever_the_number_of_workers(
    size: int, each: int, world: int, epoch: int
) -> None:
    if size < 2 * world:
        return

    def pairs(rank: int, of: int, batch_size: int) -> list[set[tuple[int, int]]]:
        sampler = EpochBatches(size, batch_size, 0, rank, of, pairs=True)
        sampler.epoch = epoch
        return [set(zip(b[::2], b[1::2])) for b in indices(sampler)]

    together = [pairs(rank, world, 2 * each * world) for rank in range(world)]
    batch_size = EpochBatches(size, 2 * each * world, 0, 0, world, pairs=True).batch_size
    alone = pairs(0, 1, batch_size)
    assert len(alone) == len(together[0])
    for step, batch in enumerate(alone):
        parts = [own[step] if step < len(own) else set() for own in together]
        assert set().union(*parts) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_pairs_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(VidpipeError, match=r"batch_size 6 .* among 2 workers.* multiple of 4"):
        EpochBatches(100, 6, 0, 0, 2, pairs=True)
    assert [len(batch) for batch in EpochBatches(10, 5, 0, 0, 1, pairs=True)] == [5, 5]


@pytest.mark.parametrize("shards", [None, np.arange(50) // 7])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_rest_of_an_epoch_is_the_rest_of_the_whole_one(
    shards: np.ndarray | None, pairs: bool
) -> None:
    def rest(start: int) -> list[list[tuple[int, int]]]:
        sampler = EpochBatches(50, 8, 3, 1, 2, shards=shards, pairs=pairs)
        sampler.epoch, sampler.start_batch = 2, start
        assert len(sampler) == 7
        return list(sampler)

    assert rest(4) == rest(0)[4:]
    assert len(rest(4)) == 2 if pairs else 3  # of the last two clips, a pair is the first rank's


# -- balanced ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(0, 99),
    st.integers(1, 4),
    st.booleans(),
)
def test_balanced_epochs_have_all_classes_and_in_the_end_all_clips_alike(
    labels: list[int], seed: int, world: int, by_shards: bool
) -> None:
    size, classes = len(labels), len(set(labels))
    if size < world:
        return
    shards = np.arange(size) // 9 if by_shards else None

    def epoch(number: int, rank: int = 0, of: int = 1) -> list[list[tuple[int, int]]]:
        made = EpochBatches(size, 4 * world, seed, rank, of, labels=np.array(labels), shards=shards)
        made.epoch = number
        return list(made)

    drawn = Counter[int]()
    for number in range(5):
        keys = [key for batch in epoch(number) for key in batch]
        assert len(keys) == size
        # The same clip twice in an epoch is not the same sample.
        assert len(set(keys)) == size
        assert {e % 2**32 for e, _ in keys} == {number}
        found = Counter(labels[i] for _, i in keys)
        assert len(found) == min(classes, size)
        assert max(found.values()) - min(found.values()) <= 1
        drawn.update(i for _, i in keys)
    for label in set(labels):
        often = [drawn[i] for i in range(size) if labels[i] == label]
        assert max(often) - min(often) <= 1
    alone = epoch(3)
    together = [epoch(3, rank, world) for rank in range(world)]
    for step, batch in enumerate(alone):
        parts = [own[step] if step < len(own) else [] for own in together]
        assert sorted(itertools.chain(*parts)) == sorted(batch)


def test_balanced_epochs_are_shuffled_and_differ() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    samplers = [EpochBatches(100, 100, 0, 0, 1, labels=labels) for _ in range(2)]
    samplers[1].epoch = 1
    first, second = (next(iter(s)) for s in samplers)
    assert first != second
    rare = [labels[i] for _, i in first]
    assert sum(rare) == 50
    assert 15 < sum(rare[:50]) < 35  # not class after class
    assert len({i for _, i in first if i < 90} & {i for _, i in second if i < 90}) <= 20


# -- by shards ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=300),
    st.integers(0, 9),
    st.integers(1, 5),
)
def test_shuffling_by_shards_reads_each_clip_once_and_few_shards_at_a_time(
    shards: list[int], epoch: int, window: int
) -> None:
    order = shard_order(np.array(shards), 0, epoch, window)
    assert sorted(order.tolist()) == list(range(len(shards)))
    seen = [shards[i] for i in order]
    spans = [(seen.index(s), len(seen) - seen[::-1].index(s)) for s in set(seen)]
    for place in range(len(seen)):
        assert sum(first <= place < last for first, last in spans) <= window


def test_shuffling_by_shards_mixes_clips_and_shards_anew_each_epoch() -> None:
    shards = np.arange(400) // 20
    first, second = (shard_order(shards, 0, epoch) for epoch in (0, 1))
    assert (shard_order(shards, 0, 0) == first).all()
    assert (first != second).mean() > 0.9
    assert (np.diff(first) == 1).mean() < 0.1  # inside a window, not in the order of the store
    assert shards[first[:20]].tolist() != shards[second[:20]].tolist()
    assert all(len(set(shards[first[i : i + 20]])) > 1 for i in range(40, 360, 20))


def test_epoch_batches_take_the_order_of_the_shards() -> None:
    shards = np.arange(40) % 8
    sampler = EpochBatches(40, 4, 1, 0, 1, shards=shards)
    sampler.epoch = 3
    assert list(itertools.chain(*indices(sampler))) == shard_order(shards, 1, 3).tolist()
