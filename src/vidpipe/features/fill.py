"""Computing the rows that a store lacks: by any number of processes, and going on after a kill."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vidpipe.backbones.zoo import Backbone
from vidpipe.data.dataset import Loader
from vidpipe.data.model_input import to_input
from vidpipe.device import autocast, set_determinism
from vidpipe.features.place import Place
from vidpipe.features.store import FeatureStore, ShardLocks
from vidpipe.features.views import Item, Views
from vidpipe.methods.split import Split
from vidpipe.training.config import TrainConfig

SAY_EVERY_S = 30.0


@dataclass
class Filler:
    """Computes frozen features of clips as a training would. `exact`: in batches of one size, so that
    they have the bits of that training's; else in bf16."""

    split: Split
    backbone: Backbone
    config: TrainConfig
    device: torch.device
    say: Callable[[str], None]

    def row_bytes(self, exact: bool) -> int:
        """Of one view of a clip."""
        numbers = sum(torch.Size(shape).numel() for shape in self.split.shapes)
        return numbers * (4 if exact else 2)

    def features(self, video: Tensor, source: Views, exact: bool) -> list[Tensor]:
        """(B, T, 3, h, w) uint8 of `source` -> tensors (B, ...) on the CPU, fp32 or bf16."""
        x = to_input(video.to(self.device), self.backbone.mean, self.backbone.std)
        # Autocast chooses kernels by whether there is a graph, which `frozen` itself has not.
        with (
            torch.set_grad_enabled(source.trained_on),
            autocast(self.config.precision, self.device),
        ):
            found = self.split.frozen(x)
        return [x.to(torch.float32 if exact else torch.bfloat16).cpu() for x in found]

    def fill(
        self,
        store: FeatureStore,
        rows: Mapping[str, Item],
        source: Views,
        size: int,
        exact: bool,
    ) -> None:
        """Compute those of `rows` that `store` lacks, in batches of `size`, shard by shard.

        Other processes may do the same at once: each takes shards that no other has, and all return when
        every row is there.
        """
        shards = store.shards(list(rows), self.row_bytes(exact), size)
        if not shards:
            return
        exactly = set_determinism(self.config.deterministic)
        with store.locks() as locks, exactly:
            while left := [names for names in shards if not store.whole(store.file(names))]:
                claims = _Claims(left, rows, store, locks, size, exact)
                self._take(claims, source, exact, sum(map(len, shards)))
                if claims.count == 0:  # others have them all: until one of them is done, or gone
                    locks.take(store.file(left[0]), wait=True)
                    locks.give(store.file(left[0]))
        store.scan()

    def _take(self, claims: _Claims, source: Views, exact: bool, total: int) -> None:
        loader = Loader(
            source,
            workers=self.config.loader_workers,
            prefetch=self.config.prefetch,
            keep=False,
            device=self.device,
            batch_sampler=claims,
        )
        parts: list[tuple[list[Tensor], Tensor, Tensor]] = []
        done, said = 0, time.monotonic()
        for batch in loader:
            names = claims.taken[0]
            count = min(claims.size, len(names) - sum(len(flipped) for _, flipped, _ in parts))
            found = self.features(batch["video"], source, exact)
            facts = (batch["flipped"][:count], batch["readable"][:count])
            parts.append(([x[:count] for x in found], *facts))
            done += count
            if sum(len(flipped) for _, flipped, _ in parts) == len(names):
                claims.finish(parts)
                parts = []
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.say(f"frozen features: {done:,} of {total:,} views")

    def variant(
        self, folder: Place, size: int, rows: Mapping[str, Item], source: Views
    ) -> FeatureStore:
        """The store whose rows have the bits of batches of `size`: its own, or that of another size
        whose rows are found to be equal, which is noted beside it."""
        own, note, there = folder / f"batch-{size}", f"batch-{size}.json", folder.names()
        if own.name in there:
            return FeatureStore(own)
        others = {
            int(name[6:]): folder / name for name in there if re.fullmatch(r"batch-\d+", name)
        }
        if note in there and (known := folder.read_json(note)["as"]) in others:
            return FeatureStore(others[known])
        for number in sorted(others, reverse=True):
            store = FeatureStore(others[number])
            if self._equal(store, size, rows, source):
                folder.write_json(note, {"as": number})
                return store
        return FeatureStore(own)

    def _equal(
        self,
        store: FeatureStore,
        size: int,
        rows: Mapping[str, Item],
        source: Views,
    ) -> bool:
        names = [name for name in rows if store.places.get(name, (-1, -1))[0] >= 0][:size]
        if not names:
            return False
        video = [cast(Tensor, source[rows[name]]["video"]) for name in names]
        video += video[-1:] * (size - len(video))
        with set_determinism(self.config.deterministic):
            found = self.features(torch.stack(video), source, exact=True)
        kept = [store.read(*store.places[name])[0] for name in names]
        return all(
            torch.equal(whole[: len(names)], torch.stack(own))
            for whole, own in zip(found, zip(*kept, strict=True), strict=True)
        )


class _Claims:
    """A batch sampler over the shards that no other process has taken."""

    def __init__(
        self,
        shards: Sequence[Sequence[str]],
        rows: Mapping[str, Item],
        store: FeatureStore,
        locks: ShardLocks,
        size: int,
        exact: bool,
    ) -> None:
        self.shards, self.rows, self.store, self.locks = shards, rows, store, locks
        self.size, self.exact = size, exact
        self.taken: list[Sequence[str]] = []
        """Shards that are ours and not yet written."""
        self.count = 0
        """Shards that were ours."""

    def __iter__(self) -> Iterator[list[Item]]:
        for names in self.shards:
            file = self.store.file(names)
            if not self.locks.take(file):
                continue
            if self.store.whole(file):
                self.locks.give(file)
                continue
            self.taken.append(names)
            self.count += 1
            for start in range(0, len(names), self.size):
                items = [self.rows[name] for name in names[start : start + self.size]]
                if self.exact:  # whose bits depend on the shape of the batch
                    items += items[-1:] * (self.size - len(items))
                yield items

    def finish(self, parts: Sequence[tuple[list[Tensor], Tensor, Tensor]]) -> None:
        """Write the first of the shards that are ours."""
        names = self.taken.pop(0)
        found, flipped, readable = zip(*parts, strict=True)
        tensors = [torch.cat(own) for own in zip(*found, strict=True)]
        flags = torch.cat(readable).tolist()
        self.store.write(names, tensors, torch.cat(flipped), flags)
        self.locks.give(self.store.file(names))
