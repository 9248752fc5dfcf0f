"""The cut between what a training never changes and the rest: its place, and the model's own bits."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from families import FAMILIES, size_of, tiny_of
from matrix import every
from tiny import randomise, tiny_vit

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.patch_drop import PatchDrop
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.split import POOLED, Split

T = 4
TOP = [
    ("linear_probe", {}, POOLED),
    ("attentional_pooling", {}, 3),
    ("st_adapter", {"blocks": [2]}, 2),
    ("st_adapter", {"blocks": {"after_mlp": [1]}}, 1),
    ("aim", {"blocks": [1, 2], "temporal_embedding_at": "first_adapted"}, 1),
    ("aim", {"blocks": [2], "temporal": False}, 2),
    ("zeroi2v", {"blocks": [1, 2], "temporal_embedding_at": "first_adapted"}, 1),
    (
        "zeroi2v",
        {"blocks": [2], "head_offsets": [[], [1], [1]], "temporal_embedding_at": "first_adapted"},
        1,
    ),
    ("zeroi2v", {"blocks": [2], "shift_ratio": 0.34, "temporal_embedding_at": "first_adapted"}, 2),
    ("lora", {"rank": 4, "blocks": [2], "temporal_embedding_at": "first_adapted"}, 2),
    ("temporal_heads", {"blocks": [1, 2], "temporal_embedding_at": "first_adapted"}, 1),
    ("partial", {"num_blocks": 2}, 1),
    ("partial", {"num_blocks": 1, "architecture": "space_only"}, 2),
    ("attentive_probe", {}, 3),
    ("side4video", {"side_width": 32}, 0),
    ("evl", {"num_layers": 2}, 0),
    ("evl", {"num_layers": 2, "temporal_cross_attention": False}, 0),
]
"""Method, options, blocks before the cut (0: what a method reads by its own account)."""


def make(name: str, options: dict[str, Any], vit: Any = None) -> VideoModel:
    torch.manual_seed(0)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, vit or tiny_vit(), 3, T, config)
    randomise(model)
    return model


def logits_and_gradients(model: VideoModel, forward: Any) -> list[torch.Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    model.clip_keys.now = torch.tensor([3, 2**31])
    logits = forward()
    (logits**2).sum().backward()
    model.clip_keys.now = None
    return [logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("name", "options", "cut"), TOP)
def test_the_cut_lies_where_the_training_begins(
    name: str, options: dict[str, Any], cut: int
) -> None:
    split = Split(make(name, options))
    assert split.cut == cut
    split = Split(make(name, {**options, "head_dropout": 0.0}))
    assert split.cut == cut


@pytest.mark.parametrize(("name", "options", "cut"), TOP)
def test_the_rest_on_kept_features_has_the_models_own_bits(
    name: str, options: dict[str, Any], cut: int
) -> None:
    """Forward and backward, noise of dropout and drop path included."""
    torch.set_num_threads(1)
    model = make(name, options)
    split, video = Split(model), torch.randn(2, 3, T, 32, 32)
    whole = logits_and_gradients(model, lambda: model(video))
    features = split.frozen(video)
    assert [tuple(x.shape) for x in features] == [(2, *shape) for shape in split.shapes]
    assert not any(x.requires_grad for x in features)
    kept = logits_and_gradients(model, lambda: split(features))
    assert len(whole) == len(kept) > 1
    for a, b in zip(whole, kept, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "options", "cut"), TOP)
def test_patches_are_left_out_behind_the_cut(name: str, options: dict[str, Any], cut: int) -> None:
    model = make(name, options)
    split, video = Split(model), torch.randn(2, 3, T, 32, 32)
    if split.whole_grid is not None:
        assert cut in (0, POOLED)
        assert split.whole_grid.endswith(f"{split.what} are all that it sees")
        return
    (features,) = split.frozen(video)
    keys = torch.tensor([3, 2**31])
    model.patch_drop, model.clip_keys.now = PatchDrop(0.5), keys
    place = 1 + model.patch_drop(video, (4, 4), keys)[1, 2]
    others = torch.randn_like(features)
    for clip, kept in enumerate(model.patch_drop(video, (4, 4), keys)):
        others[clip, :, [0, *(1 + kept)]] = features[clip, :, [0, *(1 + kept)]]
    model.train()
    half = split((features,))
    assert torch.equal(split((others,)), half)
    others[1, :, place] += 1
    assert not torch.equal(split((others,)), half)
    model.patch_drop = None
    assert not torch.allclose(split((features,)), half)


@every
def test_every_method_is_cut_without_a_change_or_says_why_not(
    name: str, options: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    model = make(name, options).eval()
    video = torch.randn(2, 3, T, 32, 32)
    split = None
    with suppress(VidpipeError):
        split = Split(model)
    assert not model.training
    if split is None:
        with pytest.raises(VidpipeError, match="nothing to keep"):
            Split(model)
        return
    with torch.no_grad():
        assert torch.equal(split(split.frozen(video)), model(video))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_image_models_is_cut(family: str) -> None:
    torch.set_num_threads(1)
    size = size_of(family)
    video = torch.randn(2, 3, T, size, size)
    for name, options in (
        ("linear_probe", {}),
        ("attentional_pooling", {}),
        ("aim", {"blocks": [1], "temporal_embedding_at": "first_adapted"}),
        ("zeroi2v", {"blocks": [1], "temporal_embedding_at": "first_adapted"}),
    ):
        model = make(name, options, tiny_of(family)).eval()
        split = Split(model)
        assert split.cut != 0
        with torch.no_grad():
            assert torch.equal(split(split.frozen(video)), model(video)), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aim", {"blocks": [2]}),  # its temporal embedding lies before the first block
        ("zeroi2v", {"blocks": [2]}),
        (
            "lora",
            {
                "blocks": [2],
                "head_offsets": [[1], [], []],
                "temporal_embedding_at": "first_adapted",
            },
        ),
        ("st_adapter", {}),
        ("zeroi2v", {}),
        ("bitfit", {}),
        ("full_finetune", {}),
        ("prompt_tuning", {"num_tokens": 2}),
        ("temporal_finetune", {"architecture": "shift"}),
    ],
)
def test_where_the_first_block_is_trained_there_is_nothing_to_keep(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(VidpipeError, match="nothing to keep"):
        Split(make(name, options))


def test_frames_that_are_mixed_end_the_frozen_part() -> None:
    """Heads that look at other frames are frozen here, and still no image model's."""
    model = make("temporal_heads", {"head_offsets": [[], [-1, 1], []]})
    for parameter in (*model.differences.parameters(), *model.temporal_embedding.parameters()):
        parameter.requires_grad_(False)
        parameter.data.zero_()
    assert Split(model).cut == 1


def test_what_decides_the_kept_tensors() -> None:
    probe = Split(make("linear_probe", {})).identity()
    assert probe == Split(make("linear_probe", {"lr": 0.1, "head_dropout": 0.0})).identity()
    assert probe != Split(make("attentional_pooling", {})).identity()
    evl = Split(make("evl", {"num_layers": 1})).identity()
    assert evl == Split(make("evl", {"num_layers": 1, "mlp_dropout": 0.0})).identity()
    assert evl != Split(make("evl", {"num_layers": 2})).identity()


@pytest.mark.parametrize("name", ["aim", "zeroi2v"])
def test_a_temporal_embedding_at_the_first_adapted_block(name: str) -> None:
    config = {"blocks": [1], "temporal_embedding_at": "first_adapted"}
    model = make(name, config).eval()
    video = torch.randn(1, 3, T, 32, 32)
    with torch.no_grad():
        seen = model(video)
        model.temporal_embedding.weight.zero_()
        assert not torch.allclose(model(video), seen)
    assert model.block_of("temporal_embedding.weight") == 1
    assert make(name, {"blocks": [1]}).block_of("temporal_embedding.weight") == -1
