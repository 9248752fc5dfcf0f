"""Features of clips and frames of every method, from one forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix import every
from swins import build, clip
from tiny import randomise, tiny_vit

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.embedder import clip_and_frame_features

T = 4


def make(name: str, options: dict[str, Any]) -> VideoModel:
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, tiny_vit(), 3, T, config)
    randomise(model)
    return model


@every
def test_the_clip_feature_is_what_the_head_classifies(name: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    model = make(name, options).eval()
    video = torch.randn(2, 3, T, 32, 32)
    with torch.no_grad():
        alone, nothing = clip_and_frame_features(model, video, frames=False)
        feature, frames = clip_and_frame_features(model, video, frames=True)
        assert nothing is None
        assert frames is not None
        assert torch.equal(feature, alone)
        assert feature.shape == (2, model.head.in_features)
        assert frames.shape == (2, T, model.width)
        if name != "zero_shot" and options.get("head_init") != "text":
            assert torch.equal(model.head(feature), model(video))
    assert not model.head_dropout._forward_pre_hooks


@pytest.mark.parametrize("name", ["linear_probe", "aim", "zeroi2v", "partial"])
def test_frame_features_are_the_models_and_their_mean_the_clips(name: str) -> None:
    model = make(name, {}).eval()
    video = torch.randn(2, 3, T, 32, 32)
    with torch.no_grad():
        feature, frames = clip_and_frame_features(model, video, frames=True)
        assert frames is not None
        torch.testing.assert_close(frames.mean(1), feature)
        if METHODS[name].order_blind:
            vit: Any = model.vit
            plain = vit.forward_head(vit.forward_features(video[:, :, 1]), pre_logits=True)
            torch.testing.assert_close(frames[:, 1], plain)


def test_a_swin_has_no_features_of_frames() -> None:
    model = build("linear_probe", {})
    with pytest.raises(VidpipeError, match="SwinTransformer has no features of frames"):
        clip_and_frame_features(model, clip(), frames=True)
