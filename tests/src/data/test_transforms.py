"""One draw a clip, the crop first, and labels that follow a mirror."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
from small_store import small_store, train_set

from vidpipe.data.config import TransformConfig
from vidpipe.data.transforms import ERASED, ClipTransform, mirrored_labels
from vidpipe.errors import VidpipeError

CROPS = ["random_resized", "short_side_jitter", "random", "center"]


def transform(seed: int, frames: torch.Tensor, **options: object) -> tuple[torch.Tensor, bool]:
    config = TransformConfig.model_validate({"size": 32, "short_side": [34, 48], **options})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ClipTransform(config)(frames)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))


EVERYTHING = {
    "flip": True,
    "rand_augment": {"num_ops": 4, "magnitude": 20, "probability": 0.75, "magnitude_std": 3},
    "color_jitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2},
    "erase_probability": 0.5,
}


@pytest.mark.parametrize("crop", CROPS)
def test_every_frame_is_treated_as_if_it_were_alone_with_the_same_draw(crop: str) -> None:
    frames = noise(4, 3, 40, 56)
    seen = set()
    for seed in range(60):  # each of RandAugment's 14 operations comes about a dozen times
        video, flipped = transform(seed, frames, crop=crop, **EVERYTHING)
        assert video.dtype == torch.uint8
        assert type(video) is torch.Tensor
        assert video.shape == (4, 3, 32, 32)
        for t in range(4):
            alone = transform(seed, frames[t : t + 1], crop=crop, **EVERYTHING)
            assert torch.equal(alone[0][0], video[t])
            assert alone[1] == flipped
        seen.add(flipped)
    assert seen == {True, False}


def test_each_option_changes_pixels_and_none_is_on_by_itself() -> None:
    frames = noise(2, 3, 40, 56)
    for seed in range(8):
        plain, flipped = transform(seed, frames)
        expected = T.RandomResizedCrop(32, scale=(0.08, 1.0), ratio=(0.75, 1.3333), antialias=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert torch.equal(plain, expected(frames))
        assert not flipped
        for name, value in EVERYTHING.items():
            options = [transform(s, frames, **{name: value})[0] for s in range(12)]
            assert any(
                not torch.equal(a, transform(s, frames)[0]) for s, a in enumerate(options)
            ), name


def test_rand_augment_draws_its_operations_and_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's rand-m7-n4-mstd0.5, counted to 30: as many operations, and as strong, as it applies."""
    magnitudes: list[float] = []
    original = T.RandAugment.forward

    def watched(self: T.RandAugment, video: torch.Tensor) -> torch.Tensor:
        magnitudes.append(30 * self.magnitude / (self.num_magnitude_bins - 1))
        return original(self, video)

    monkeypatch.setattr(T.RandAugment, "forward", watched)
    frames = noise(1, 3, 32, 32)
    timm = {"num_ops": 4, "magnitude": 21, "probability": 0.5, "magnitude_std": 1.5}
    for seed in range(500):
        transform(seed, frames, crop="center", rand_augment=timm)
    drawn = np.array(magnitudes)
    assert len(drawn) == pytest.approx(1000, abs=5 * 500**0.5)  # of 2,000 with probability 0.5
    assert drawn.mean() == pytest.approx(21, abs=0.3)
    assert drawn.std() == pytest.approx(1.5, rel=0.15)
    magnitudes.clear()
    for magnitude, std in ((7, 0.0), (30, 20.0), (0, 20.0)):
        for seed in range(20):
            options = {"num_ops": 2, "magnitude": magnitude, "magnitude_std": std}
            transform(seed, frames, crop="center", rand_augment=options)
    assert set(magnitudes[:40]) == {7.0}
    assert len(magnitudes) == 120
    assert min(magnitudes) == 0
    assert max(magnitudes) == 30
    never = {"num_ops": 4, "magnitude": 30, "probability": 0.0}
    assert torch.equal(transform(0, frames, crop="center", rand_augment=never)[0], frames)


def test_erasing_paints_one_box_of_all_frames_in_the_mean_colour() -> None:
    frames = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    video, _ = transform(1, frames, crop="center", erase_probability=1.0)
    painted = (video != 0).any(1)
    assert 0 < painted[0].sum() < 32 * 32 / 2
    assert all(torch.equal(painted[0], frame) for frame in painted)
    assert video.flatten(2).max(2).values.tolist() == [list(ERASED)] * 3


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (48, 48)])
def test_crops_of_short_sides_are_squares_of_source_pixels(height: int, width: int) -> None:
    """A picture whose channels are its coordinates shows which box was taken."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = torch.stack([y, x, torch.zeros_like(x)])[None].to(torch.uint8)
    sides, corners = set(), set()
    for seed in range(150):
        video = transform(seed, frames, crop="short_side_jitter")[0][0].int()
        extent = [int(video[c].max() - video[c].min()) + 1 for c in (0, 1)]
        assert abs(extent[0] - extent[1]) <= 2  # the same scale both ways
        sides.add(extent[0])
        corners.add((int(video[0].min()) < 8, int(video[1].min()) < 8))
    # A short side of 34 shows 32 / 34 of 48 pixels, one of 48 shows 32 of them.
    assert 30 <= min(sides) <= 33
    assert 43 <= max(sides) <= 46
    assert corners == {(True, True), (True, False), (False, True), (False, False)}


def test_center_and_random_take_the_whole_short_side() -> None:
    frames = noise(1, 3, 32, 50)
    assert torch.equal(transform(0, frames, crop="center")[0], frames[..., 9:41])
    found = set()
    for seed in range(150):
        video, _ = transform(seed, frames, crop="random")
        found |= {x for x in range(19) if torch.equal(video, frames[..., x : x + 32])}
    assert found == set(range(19))


# -- labels of mirrored clips -------------------------------------------------------------------


def labels(classes: list[str], **options: object) -> list[int]:
    config = TransformConfig.model_validate({"size": 32, "flip": True, **options})
    return mirrored_labels(config, classes).tolist()


def test_flip_pairs_swap_and_ssv2_names_its_own() -> None:
    assert labels(["l", "up", "r"], flip_pairs=[["l", "r"]]) == [2, 1, 0]
    assert labels(["l", "up", "r"], flip_pairs=[["l", "r"]], flip=False) == [0, 1, 2]
    names = [f"c{i}" for i in range(174)]
    swapped = {i: j for i, j in enumerate(labels(names, flip_pairs="ssv2")) if i != j}
    assert swapped == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    with pytest.raises(VidpipeError, match=r"in the list of 174; this data set has 173"):
        labels(names[1:], flip_pairs="ssv2")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["left", "rigth"]], r"flip_pairs: 'rigth' is not a class; nearest is right"),
        ([["left", "right"], ["right", "up"]], r"class 'right' is in more than one pair"),
    ],
)
def test_impossible_pairs_are_refused(pairs: list[list[str]], message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        labels(["left", "right", "up"], flip_pairs=pairs)


def test_classes_that_look_like_pairs_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    classes = ["From left to right", "move_left", "bright", "From right to left", "move_right"]
    classes += ["turn Left", "turn right", "blight", "left hand only"]
    with caplog.at_level(logging.WARNING):
        labels(classes, flip_pairs=[["turn Left", "turn right"]])
    (record,) = caplog.records
    message = record.getMessage()
    assert "From left to right / From right to left, move_left / move_right without" in message
    assert "turn" not in message.split("without")[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        labels(classes, flip=False)
        labels(["a", "b"])
    assert not caplog.records


def test_a_flipped_sample_has_the_mirrored_label(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    paired = train_set(store, crop="center", flip_pairs=[["a", "b"]])
    alone = train_set(store, crop="center")
    plain = train_set(store, crop="center", flip=False)
    seen = set()
    for key in [(epoch, i) for epoch in range(4) for i in range(7)]:
        flipped = not torch.equal(paired[key]["video"], plain[key]["video"])
        assert paired[key]["label"] == (1 - plain[key]["label"] if flipped else plain[key]["label"])
        assert alone[key]["label"] == plain[key]["label"]
        seen.add(flipped)
    assert seen == {True, False}
