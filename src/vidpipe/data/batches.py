"""Which clips make which batch: f(seed, epoch), cut up alike for any number of training workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vidpipe.errors import VidpipeError

REPEAT = 2**32
"""Added to the epoch in a sample's key for each time that its clip was drawn before in this epoch, since
what is random in a sample is a function of its key."""
SHARDS_AT_ONCE = 4
"""With `train.shuffle: shards`, how many shards the clips around one place of an epoch are from."""


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """This rank's part of each global batch of one epoch: the same global order for any world size.

    Set `epoch`, and `start_batch` to go on in the middle of it, before each iteration; the number of
    batches (`len`) is that of the whole epoch. `shards` (N,) turns on the shuffling by shards.
    `pairs`: clips (2k, 2k + 1) of the global batch stay together, to be mixed.
    `labels` (N,) turns on class-balanced draws (`balanced_draws`) in place of each clip once.
    The last batch has the clips that are left: some ranks may have one more than others, and a rank
    without any has a batch fewer. With `drop_last` it is left out, unless it is the only one.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        *,
        shards: NDArray[np.int64] | None = None,
        labels: NDArray[np.int64] | None = None,
        pairs: bool = False,
        drop_last: bool = False,
    ) -> None:
        each = world_size * (2 if pairs and world_size > 1 else 1)
        if size < each:
            raise VidpipeError(f"{size} training clips cannot feed {world_size} workers")
        self.batch_size = min(batch_size, size - size % each if drop_last else size)
        if pairs and batch_size % each:
            raise VidpipeError(
                f"train.batch_size {batch_size} does not divide into pairs among {world_size} "
                f"workers, and mixup_alpha and cutmix_alpha mix pairs; make it a multiple of {each}"
            )
        self.clips = size - size % self.batch_size if drop_last else size
        """Of an epoch, over all ranks."""
        self.size, self.seed = size, seed
        self.rank, self.world_size = rank, world_size
        self.shards, self.labels, self.pairs = shards, labels, pairs
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return -(-self.clips // self.batch_size)

    def size_of(self, batch: int) -> int:
        """Clips of global batch number `batch` of an epoch."""
        return min(self.batch_size, self.clips - batch * self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.labels is None:
            clips, repeats = np.arange(self.size), np.zeros(self.size, np.int64)
        else:
            clips, repeats = balanced_draws(self.labels, self.seed, self.epoch)
        if self.shards is None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        else:
            order = shard_order(self.shards[clips], self.seed, self.epoch)
        clips, keys = clips[order], self.epoch + REPEAT * repeats[order]
        for batch in range(self.start_batch, len(self)):
            at = np.arange(self.size_of(batch))
            mine = at[(at // 2 if self.pairs else at) % self.world_size == self.rank]
            if len(mine):
                place = batch * self.batch_size + mine
                yield list(zip(keys[place].tolist(), clips[place].tolist(), strict=True))


def parts(clips: int, accumulate: int, together: int = 1) -> Iterator[slice]:
    """`clips` of a worker cut into at most `accumulate` parts, multiples of `together` but for the last.

    >>> list(parts(5, 2))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    part = -(-clips // accumulate)
    part += -part % together
    for start in range(0, clips, part):
        yield slice(start, min(start + part, clips))


def part_of(batch: Mapping[str, Any], part: slice) -> dict[str, Any]:
    """Some clips of a collated batch, whose values are tensors (B, ...) or lists of them."""
    return {
        key: [x[part] for x in value] if isinstance(value, list) else value[part]
        for key, value in batch.items()
    }


def balanced_draws(
    labels: NDArray[np.int64], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As many clips as there are, all classes equally often (to one), for `train.balance: sample`.

    The clips of a class are gone through again and again, shuffled anew each time, and an epoch goes on
    where the one before ended: over all epochs, the clips of a class are drawn equally often (to one).

    Returns clips (N,) and how often each draw's clip was drawn before in this epoch (N,).
    """
    classes, label = np.unique(labels, return_inverse=True)
    share, rest = divmod(len(labels), len(classes))
    drawn, repeats = [], []
    for c in range(len(classes)):
        own = np.flatnonzero(label == c)
        # Draws that are left over go to the classes in turn.
        start, end = (
            e * share + (e * rest + len(classes) - 1 - c) // len(classes)
            for e in (epoch, epoch + 1)
        )
        rounds = range(start // len(own), -(-end // len(own)))
        shuffled = [np.random.default_rng([seed, c, r, 2]).permutation(own) for r in rounds]
        first = start % len(own)
        clips = np.concatenate([own[:0], *shuffled])[first : first + end - start]
        order = np.argsort(clips, kind="stable")
        starts = np.searchsorted(clips[order], clips[order])
        times = np.empty(len(clips), np.int64)
        times[order] = np.arange(len(clips)) - starts
        drawn.append(clips)
        repeats.append(times)
    return np.concatenate(drawn), np.concatenate(repeats)


def shard_order(
    shards: NDArray[np.int64], seed: int, epoch: int, window: int = SHARDS_AT_ONCE
) -> NDArray[np.int64]:
    """Every clip once, shuffled so that no place of the epoch lies within more than `window` shards.

    Shards are permuted, and clips sorted by their shard's place plus a draw in [0, window): around
    the value v are clips of the shards placed in (v - window, v], and of no others. A store that is
    read over a network then fetches each shard once. `shards` (N,) is the shard of each clip.

    Batches are only as mixed as `window` shards are: clips must not lie in the store class by class.
    """
    rng = np.random.default_rng([seed, epoch])
    _, shard = np.unique(shards, return_inverse=True)
    places = rng.permutation(int(shard.max()) + 1)
    return np.argsort(places[shard] + rng.random(len(shards)) * window, kind="stable")
