"""Samples that depend on (seed, epoch, index) and on nothing else, views, and unreadable clips."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_store import UNIFORM, small_store, train_set

from vidpipe.data.batches import EpochBatches
from vidpipe.data.config import SamplingConfig, SubsetConfig, TransformConfig
from vidpipe.data.dataset import Clips, ViewSet, train_loader, view_loader
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.training.metrics import BadReads
from vidpipe.video.store import FrameStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return small_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("crop", ["random_resized", "short_side_jitter", "random", "center"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(store: FrameStore, crop: str) -> None:
    data = train_set(
        store,
        **{"crop": crop, "short_side": [34, 48], "erase_probability": 0.5},
        rand_augment={"num_ops": 2, "magnitude": 9},
        color_jitter={"brightness": 0.4, "hue": 0.1},
    )
    torch.manual_seed(123)
    first = data[(2, 3)]
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(data[(2, 3)]["video"], first["video"])
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global generator alone
    assert first["video"].dtype == torch.uint8
    assert first["video"].shape == (4, 3, 32, 32)
    assert not torch.equal(data[(3, 3)]["video"], first["video"])


def epoch_of(
    store: FrameStore, workers: int, start_batch: int = 0, prefetch: int = 2
) -> list[dict[str, torch.Tensor]]:
    batches = EpochBatches(7, 2, seed=0, rank=0, world_size=1)
    batches.epoch, batches.start_batch = 4, start_batch
    data = train_set(store, rand_augment={"num_ops": 1, "magnitude": 9})
    return list(train_loader(data, batches, workers, prefetch))


def equal(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    same = [all(torch.equal(x[key], y[key]) for key in x) for x, y in zip(a, b, strict=True)]
    return len(same) > 0 and all(same)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_loader_processes(store: FrameStore, workers: int) -> None:
    assert equal(epoch_of(store, 0), epoch_of(store, workers, prefetch=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_from_its_middle_as_if_it_had_not_stopped(
    store: FrameStore, workers: int
) -> None:
    assert equal(epoch_of(store, 0)[1:], epoch_of(store, workers, start_batch=1))


def test_views_are_crops_along_the_long_side_read_in_one_pass(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = Clips(store, "val", ["a", "b"])
    dense = SamplingConfig(strategy="dense", num_frames=4, stride=3)
    reads = []
    original = FrameStore.read
    monkeypatch.setattr(FrameStore, "read", lambda *a: reads.append(a) or original(*a))
    views = ViewSet(clips, dense, TransformConfig(size=48), temporal_clips=2, spatial_crops=3)
    video = views[0]["video"]
    assert video.shape == (6, 4, 3, 48, 48)
    assert len(reads) == 1
    frames = clips.read(0, [0, 3, 6, 9])
    assert torch.equal(video[0], frames[..., :48])
    assert torch.equal(video[1], frames[..., 8:56])
    assert torch.equal(video[2], frames[..., 16:])


def test_normalisation_matches_the_definition() -> None:
    video = torch.randint(0, 256, (2, 4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    x = to_input(video, mean, std)
    assert x.shape == (2, 3, 4, 5, 5)
    for channel in range(3):
        expected = (video[:, :, channel].float() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(x[:, channel], expected)


def test_a_class_the_store_does_not_know(store: FrameStore) -> None:
    with pytest.raises(VidpipeError, match="label 'b' is not among the 1 classes"):
        Clips(store, "train", ["a"])


# -- unreadable clips ---------------------------------------------------------------------------


@pytest.fixture
def broken(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> FrameStore:
    """Clips c2 and c8 cannot be read."""
    original = FrameStore.read

    def read(self: FrameStore, clip: int, indices: list[int]) -> np.ndarray:
        if clip in (2, 8):
            raise VidpipeError(f"clip c{clip} cannot be read: cut short")
        return original(self, clip, indices)

    monkeypatch.setattr(FrameStore, "read", read)
    return store


def test_another_clip_takes_the_place_of_an_unreadable_one(
    broken: FrameStore, caplog: pytest.LogCaptureFixture
) -> None:
    data = train_set(broken)
    with caplog.at_level(logging.WARNING):
        items = [data[(epoch, 2)] for epoch in range(12)]
    assert all(item["replaced"] and item["asked"] == 2 for item in items)
    assert (
        len({item["index"] for item in items}) > 2
    )  # another one each time, not a fixed neighbour
    assert 2 not in {item["index"] for item in items}
    assert "clip c2: another takes its place" in caplog.text
    again = data[(3, 2)]
    assert again["index"] == items[3]["index"]
    assert torch.equal(again["video"], items[3]["video"])
    # Nor is the sample the very one that the other clip gives in its own turn.
    assert not torch.equal(again["video"], data[(3, again["index"])]["video"])
    assert again["label"] == data.clips.labels[again["index"]]
    fine = data[(3, 1)]
    assert (fine["replaced"], fine["asked"], fine["index"]) == (False, 1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_clips_are_counted_over_all_loader_processes(
    broken: FrameStore, workers: int
) -> None:
    data = train_set(broken)
    batches = EpochBatches(7, 3, seed=0, rank=0, world_size=1)
    bad = BadReads(data, 0.01, 6)
    for epoch in range(6):
        batches.epoch = epoch
        asked = [i for batch in batches for _, i in batch]
        before = bad.found
        bad.allowed = 99
        for batch in train_loader(data, batches, workers):
            bad.count(batch)
        assert bad.found - before == asked.count(2)
    assert set(bad.first) == {"c2"}


def test_too_many_unreadable_clips_end_the_epoch_and_are_named(broken: FrameStore) -> None:
    item = train_set(broken)[(0, 2)]
    batch = {key: torch.tensor([item[key]]) for key in ("asked", "replaced")}
    bad = BadReads(train_set(broken), 0.3, 7)  # two of seven are fewer than 0.3 * 7
    for _ in range(2):
        bad.count(batch)
    with pytest.raises(
        VidpipeError, match=r"^3 of an epoch's 7 clips .* \(c2, c2, c2, \.\.\.\), more"
    ):
        bad.count(batch)
    with pytest.raises(VidpipeError, match=r"^5 of an epoch's"):
        BadReads(train_set(broken), 0.3, 7).check(5)  # the other ranks' count
    BadReads(train_set(broken), 0.0, 7).check(1)  # one is always allowed


def test_a_store_without_a_readable_clip_ends_the_training(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise VidpipeError("shard-00000.bin: cut short; extract again")

    monkeypatch.setattr(FrameStore, "read", read)
    with pytest.raises(VidpipeError, match="cut short; extract again"):
        train_set(store)[(0, 0)]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_refuses_an_unreadable_clip_in_one_line(
    broken: FrameStore, workers: int
) -> None:
    views = ViewSet(Clips(broken, "val", ["a", "b"]), UNIFORM, TransformConfig(size=32))
    with pytest.raises(VidpipeError) as caught:
        list(view_loader(views, 2, workers))
    assert str(caught.value) == "clip c8 cannot be read: cut short"


# -- clips --------------------------------------------------------------------------------------


def test_a_subset_is_of_training_clips_only(
    store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def subset_rows(
        ids: list[str], labels: list[tuple[str, ...]], config: SubsetConfig
    ) -> np.ndarray:
        asked.append((ids, labels, config))
        return np.array([1, 4])

    module = SimpleNamespace(subset_rows=subset_rows)
    monkeypatch.setitem(sys.modules, "vidpipe.data.subset", module)
    config = SubsetConfig(per_class=1)
    clips = Clips(store, "train", ["a", "b"], config)
    assert clips.ids == ["c1", "c4"]
    assert clips.labels.tolist() == [1, 0]
    assert asked == [([f"c{i}" for i in range(7)], [(label,) for label in "abababa"], config)]
    assert len(Clips(store, "val", ["a", "b"], config)) == 3
    assert len(Clips(store, "train", ["a", "b"], SubsetConfig())) == 7
    assert len(asked) == 1


def test_clips_hold_numbers_and_bytes_only(store: FrameStore) -> None:
    clips = Clips(store, "train", ["a", "b"])
    own = {k: v for k, v in vars(clips).items() if k not in ("store", "classes")}
    assert all(isinstance(v, np.ndarray | pa.Array) for v in own.values())
    assert all(v.dtype != object for v in own.values() if isinstance(v, np.ndarray))
    assert [clips.name(i) for i in range(7)] == clips.ids == [f"c{i}" for i in range(7)]
