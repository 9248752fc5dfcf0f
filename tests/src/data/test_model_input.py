"""How a frame becomes a model's input: its size, the part of it, and what is left at the default."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as T
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.input_card import InputCard, completed, input_card
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.config.identity import config_hash, deciding
from vidpipe.data.config import TransformConfig
from vidpipe.data.model_input import InputForm, crop_views, middle_view, to_input
from vidpipe.data.transforms import ClipTransform, largest_box
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, sides

SIDES = st.integers(14, 90)
BOTH = {"interpolation": "card", "crop_pct": "card"}


def noise(height: int, width: int, frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1.0, 0.95, 0.9, 0.875]))
def test_a_frame_is_resized_until_it_just_covers(
    h: int, w: int, H: int, W: int, part: float
) -> None:
    rows, columns = InputForm((h, w), crop_pct=part).resized(H, W)
    wanted = math.floor(h / part), math.floor(w / part)
    assert rows >= wanted[0]
    assert columns >= wanted[1]
    by_rows = rows == wanted[0] and columns == rows * W // H
    by_columns = columns == wanted[1] and rows == columns * H // W
    assert (
        by_rows or by_columns
    )  # of sides close to one another, both may be as wanted by one alone


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.integers(14, 60), st.sampled_from([1, 3]))
def test_a_square_is_what_it_was_before_there_were_others(
    height: int, width: int, size: int, crops: int
) -> None:
    """The short side resized by torchvision, then crops along the long one."""
    frames = noise(height, width)
    found = crop_views(frames, np.arange(2)[None], InputForm(size), crops)
    resized = F.resize(frames, [size], antialias=True)
    for view, part in zip(found, (0.5,) if crops == 1 else (0.0, 0.5, 1.0), strict=True):
        top, left = (round((side - size) * part) for side in resized.shape[-2:])
        assert torch.equal(view, resized[..., top : top + size, left : left + size])


def test_three_crops_go_along_the_side_that_sticks_out() -> None:
    def corners(form: InputForm, height: int, width: int) -> list[tuple[int, int]]:
        rows, columns = form.resized(height, width)
        y = torch.arange(rows).view(1, 1, -1, 1).expand(1, 1, rows, columns)
        x = torch.arange(columns).view(1, 1, 1, -1).expand(1, 1, rows, columns)
        frame = torch.cat([y, x, x], 1).to(torch.uint8)  # as large as it is resized to
        views = crop_views(frame, np.zeros((1, 1), np.int64), form, 3)
        assert views.shape == (3, 1, 3, *form.sides)
        return [(int(view[0, 0, 0, 0]), int(view[0, 1, 0, 0])) for view in views]

    assert corners(InputForm((32, 40)), 40, 80) == [(0, 0), (0, 12), (0, 24)]
    assert corners(InputForm((32, 60)), 40, 50) == [(0, 0), (8, 0), (16, 0)]
    assert corners(InputForm((32, 40)), 64, 80) == [(0, 0)] * 3
    # With a part of the frame, the other side stays in the middle.
    assert corners(InputForm(36, crop_pct=0.9), 40, 80) == [(2, 0), (2, 22), (2, 44)]


@pytest.mark.parametrize(
    ("size", "part", "how"),
    [
        (28, 0.875, "bicubic"),
        (28, 0.9, "bilinear"),
        ((24, 40), 0.9, "bicubic"),
        (28, 1.0, "bicubic"),
    ],
)
def test_a_card_is_followed_as_timm_follows_it(size: Size, part: float, how: str) -> None:
    """timm's own evaluation transform, on tensors; it rounds a long side up where torchvision cuts."""
    card = InputCard(mean=(0, 0, 0), std=(1, 1, 1), size=size, interpolation=how, crop_pct=part)
    form = InputForm.of(completed(TransformConfig(**BOTH), card))
    assert form == InputForm(size, how, part)
    frames = noise(48, 80)
    theirs = create_transform(
        (3, *sides(size)), interpolation=how, crop_pct=part, mean=(0, 0, 0), std=(1, 1, 1)
    )
    steps = [step for step in theirs.transforms if "Resize" in str(step) or "Crop" in str(step)]
    assert len(steps) == 2
    rows, columns = form.resized(48, 80)
    by_hand = F.resize(frames, [rows, columns], InterpolationMode(how), antialias=True)
    found = middle_view(frames, form)[0]
    assert torch.equal(found, F.center_crop(by_hand, list(form.sides)))
    expected = T.Compose(steps)(frames)
    assert (found.float() - expected.float()).abs().mean() < (0.5 if isinstance(size, int) else 6)


def test_what_nobody_says_is_in_no_identity() -> None:
    plain = TransformConfig(size=48)
    assert "interpolation" not in deciding(plain)
    assert config_hash(plain) == config_hash(TransformConfig(size=[48, 48], **{"crop_pct": 1}))
    # The hash before sizes could be anything but one number.
    assert config_hash(plain) == "9038aeb39d12"
    others = [
        {"interpolation": "bicubic"},
        {"crop_pct": 0.9},
        BOTH,
        {"size": [48, 60]},
        {"size": None},
    ]
    hashes = {config_hash(TransformConfig(**{"size": 48, **other})) for other in others}
    assert len(hashes | {config_hash(plain)}) == 6
    assert InputForm(48).identity() == [48]
    assert InputForm(48, "bicubic").identity() == [48, "bicubic", 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "7, expected pixels from 14 to 2048: one number for a square, or .height, width."),
        ([224], "expected pixels"),
        ([224, 4000], "expected pixels"),
        ("wide", "'wide', expected pixels"),
        (True, "True, expected pixels"),
        ([14, 57], "14 x 57, expected one side at most 4 times the other"),
    ],
)
def test_an_impossible_size_is_one_line(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformConfig.model_validate({"size": value})


def test_the_card_of_the_weights_is_the_files_own_then_the_tags(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    still = BackboneConfig(name=ARCHITECTURE, weights=str(WEIGHTS))
    assert input_card(still).size == 48
    own = InputCard(
        mean=(0.1, 0.2, 0.3), std=(1, 2, 3), size=(36, 60), interpolation="bicubic", crop_pct=0.9
    )
    file = tmp_path / "w.safetensors"
    save_file(load_file(WEIGHTS), file, metadata=own.header())
    named = still.model_copy(update={"weights": str(file)})
    assert input_card(named) == own
    assert completed(TransformConfig(**BOTH), named).size == (36, 60)
    for key, bad in {
        "crop_pct": "2",
        "input_size": "3,a,b",
        "mean": "1,2",
        "interpolation": "x",
    }.items():
        save_file(load_file(WEIGHTS), file, metadata={**own.header(), key: bad})
        with pytest.raises(VidpipeError, match=r"w\.safetensors: its header: "):
            input_card(named)
    clip = BackboneConfig(name="vit_large_patch14_clip_224", weights="hub:laion2b")
    other = clip.model_copy(update={"weights": "hub:openai"})
    assert input_card(clip).mean != input_card(other).mean
    with pytest.raises(
        VidpipeError, match="no weights 'nope' of vit_large_patch14_clip_224; it has"
    ):
        input_card(clip.model_copy(update={"weights": "hub:nope"}))


def test_nothing_is_looked_up_for_what_is_given() -> None:
    nobody = BackboneConfig(name="nobody", weights="none")
    assert completed(TransformConfig(size=48), nobody) == TransformConfig(size=48)
    with pytest.raises(VidpipeError, match="timm has no model 'nobody'"):
        completed(TransformConfig(), nobody)
    with pytest.raises(VidpipeError, match="no backbone is at hand"):
        InputForm.of(TransformConfig())


@settings(max_examples=40, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from([(24, 24), (24, 40), (40, 24), (20, 60)]),
    st.sampled_from(["random_resized", "short_side_jitter", "random", "center"]),
)
def test_training_crops_have_the_inputs_shape(
    height: int, width: int, size: tuple[int, int], crop: str
) -> None:
    config = TransformConfig(size=size, crop=crop, short_side=(40, 60))
    torch.manual_seed(0)
    video, _ = ClipTransform(config)(noise(height, width))
    assert video.shape == (2, 3, *size)
    rows, columns = largest_box(height, width, size)
    assert rows <= height
    assert columns <= width
    assert rows == height or columns == width
    # By at most half a pixel of the input's own shape.
    assert abs(rows * size[1] - columns * size[0]) <= max(size)


def test_a_wide_crop_distorts_as_little_as_a_square_one() -> None:
    config = TransformConfig(size=(24, 48), scale=(0.1, 0.3), ratio=(0.8, 1.25))
    boxes = []
    for seed in range(200):
        torch.manual_seed(seed)
        resize = ClipTransform(config).resized_crop
        boxes.append(resize.make_params([noise(80, 160)]))
    found = np.array([box["width"] / box["height"] for box in boxes]) / 2
    assert 0.78 < found.min() < 0.85
    assert 1.18 < found.max() < 1.28


def test_a_clip_has_one_layout_in_memory_whoever_stacked_it() -> None:
    """The last bits of a convolution depend on it on processors without AVX-512."""
    stacked = torch.randint(256, (2, 4, 3, 6, 8), dtype=torch.uint8)  # as by a loader's worker
    decoded = stacked.movedim(-3, -1).contiguous().movedim(-1, -3)
    found, same = (to_input(video, [0.4] * 3, [0.2] * 3) for video in (stacked, decoded))
    assert torch.equal(found, same)
    assert found.shape == (2, 3, 4, 6, 8)
    assert found.stride() == same.stride()
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
