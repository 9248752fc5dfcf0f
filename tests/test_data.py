"""Layouts, sampling, and samples that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_video import moving

from vidpipe.data.batches import EpochBatches
from vidpipe.data.config import DataConfig, SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet, to_input, train_loader
from vidpipe.data.layouts import list_items
from vidpipe.errors import VidpipeError
from vidpipe.video.encode import encode_h264
from vidpipe.video.store import FrameStore, write_manifest

UNIFORM = SamplingConfig(strategy="uniform", num_frames=4)


# -- layouts ------------------------------------------------------------------------------------


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def test_folder_per_class(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("walk", "run") for i in range(10)), "run/notes.txt")
    items = list_items(DataConfig(root=str(tmp_path))).items
    assert len(items) == 20
    held_out = [item for item in items if item.split == "val"]
    assert sorted(item.label for item in held_out) == ["run"] * 2 + ["walk"] * 2
    touch(tmp_path, "walk/new.mp4")
    again = {item.path: item.split for item in list_items(DataConfig(root=str(tmp_path))).items}
    moved = [item for item in items if again[item.path] != item.split]
    assert len(moved) <= 1  # adding a video reshuffles nothing


def csv_root(tmp_path: Path, text: str) -> DataConfig:
    (tmp_path / "index.csv").write_text(text)
    return DataConfig(root=str(tmp_path), annotations="index.csv")


def test_csv_with_splits_and_a_rule_for_rows_to_keep(tmp_path: Path) -> None:
    config = csv_root(
        tmp_path,
        "path,label,mirrored,split\na.mp4,x,0,train\nb.mp4,y,1,train\nc.mp4,x,0,val\nd.mp4,y,1,val\n",
    ).model_copy(update={"keep": {"val": {"mirrored": "0"}}})
    assert [item.path for item in list_items(config).items] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.mp4,x\n", "no column 'path'"),
        ("path,label,split\n../a.mp4,x,train\n", "path '../a.mp4' leaves data.root"),
        ("path,label,split\n/etc/a.mp4,x,train\n", "leaves data.root"),
        ("path,label,split\na.mp4,x,train\na.mp4,y,val\n", "a.mp4 is listed more than once"),
        ("path,label,split\na.mp4,x,train\nb.mp4,x,val\n", r"only one class \('x'\)"),
        ("path,label,split\na.mp4,x,train\nb.mp4,y,train\n", "no video in split 'val'"),
        ("path,label,split\na.mp4,x,dev\n", "split 'dev' of a.mp4; expected train or val"),
        ("path,label,split\na.mp4,,train\n", "no path or no label"),
        ("path,label,split\n", "no videos found"),
    ],
)
def test_bad_annotations_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(VidpipeError, match=message) as caught:
        list_items(csv_root(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_class_list_is_named_with_its_nearest(tmp_path: Path) -> None:
    config = csv_root(tmp_path, "path,label,split\na.mp4,jump,train\nb.mp4,walks,val\n")
    with pytest.raises(VidpipeError, match=r"label 'walks' .* not in the list; nearest is walk"):
        list_items(config.model_copy(update={"classes": ("jump", "walk")}))


def test_missing_root() -> None:
    with pytest.raises(VidpipeError, match=r"data.root: .*no such folder"):
        list_items(DataConfig(root="nowhere/at/all"))


# -- samples ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    root = tmp_path_factory.mktemp("store")
    rows, data = [], b""
    for i in range(10):
        clip = encode_h264(iter(np.roll(moving(20), 3 * i, 2)), Fraction(25), 20, 8)[0]
        rows.append(
            {
                **{"id": f"c{i}", "path": f"c{i}.mp4", "label": "ab"[i % 2]},
                **{"split": "train" if i < 7 else "val", "status": "ok", "reason": ""},
                **{"detail": "", "frames": 20, "fps": 25.0, "width": 64, "height": 48},
                **{"sha256": str(i), "shard": 0, "offset": len(data), "nbytes": len(clip)},
            }
        )
        data += clip
    (root / "shard-00000.bin").write_bytes(data)
    write_manifest(root, rows, ("a", "b"))
    return FrameStore(root)


def train_set(store: FrameStore, **transform: object) -> TrainSet:
    config = TransformConfig.model_validate({"size": 32, "flip": True, **transform})
    return TrainSet(Clips(store, "train", ["a", "b"]), UNIFORM, config, seed=5)


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(store: FrameStore, crop: str) -> None:
    data = train_set(store, crop=crop)
    torch.manual_seed(123)
    first = data[(2, 3)]
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(data[(2, 3)]["video"], first["video"])
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global generator alone
    assert first["video"].dtype == torch.uint8
    assert first["video"].shape == (4, 3, 32, 32)
    if crop != "center":
        assert not torch.equal(data[(3, 3)]["video"], first["video"])


def test_batches_do_not_depend_on_loader_processes(store: FrameStore) -> None:
    def epoch(workers: int) -> list[torch.Tensor]:
        batches = EpochBatches(7, 3, seed=0, rank=0, world_size=1)
        batches.epoch = 4
        return [batch["video"] for batch in train_loader(train_set(store), batches, workers)]

    for a, b in zip(epoch(0), epoch(2), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 4), st.integers(0, 5))
def test_workers_share_one_global_order(size: int, each: int, world: int, epoch: int) -> None:
    if size < world:
        return

    def batches(rank: int, of: int) -> list[list[tuple[int, int]]]:
        sampler = EpochBatches(size, each * world, 0, rank, of)
        sampler.epoch = epoch
        return list(sampler)

    alone = EpochBatches(size, min(each * world, size - size % world), 0, 0, 1)
    alone.epoch = epoch
    together = [batches(rank, world) for rank in range(world)]
    for step, batch in enumerate(alone):
        parts = [sorted(together[rank][step]) for rank in range(world)]
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert len({len(part) for part in parts}) == 1


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
