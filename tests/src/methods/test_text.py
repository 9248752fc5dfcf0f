"""Zero-shot classification and heads that start from text, against open_clip's own numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_clips import CARDS, saved_clip, small_clips

import vidpipe
from vidpipe.config.identity import config_hash
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import CONFIGS
from vidpipe.methods.prompts import ACTION_PROMPTS, spoken, unsayable
from vidpipe.methods.registry import METHODS

T = 3
NAMES = ["playing_guitar", "ApplyEyeMakeup", "surfing water", "brush-hair"]
SPOKEN = ["playing guitar", "Apply Eye Makeup", "surfing water", "brush hair"]
BPE = ["small-clip", "small-trunk", "small-eva"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """open_clip's models by name; their whole weights are in `folder`/NAME.safetensors."""
    folder = tmp_path_factory.mktemp("clips")
    with small_clips(folder):
        models = {name: saved_clip(name, folder / f"{name}.safetensors") for name in CARDS}
        yield {**models, "folder": folder}


def make(clips: dict[str, Any], method: str, name: str = "small-clip", **options: Any) -> Any:
    own = {"num_classes": len(NAMES), "num_frames": T, "classes": NAMES}
    own["weights"] = clips["folder"] / f"{name}.safetensors"
    return vidpipe.create_model(method, f"open_clip:{name}", **{**own, **options}).eval()


def clip(size: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, 3, T, size, size, generator=generator)


def theirs(model: Any, name: str, video: torch.Tensor, prompts: Any) -> torch.Tensor:
    """Zero-shot logits of frames by open_clip's own functions: mean of normalised frames, cosine."""
    tokenizer = open_clip.get_tokenizer(name)
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, SPOKEN, prompts)
        frames = model.encode_image(video.transpose(1, 2).flatten(0, 1), normalize=True)
        mean = F.normalize(frames.unflatten(0, (-1, T)).mean(1), dim=-1)
        return model.logit_scale.exp() * mean @ weights


@pytest.mark.parametrize("name", BPE)
@pytest.mark.parametrize("prompts", [None, ["a clip of {}, an action.", "{}"]], ids=["ten", "own"])
def test_zero_shot_is_open_clips(clips: dict[str, Any], name: str, prompts: Any) -> None:
    options = {} if prompts is None else {"prompts": prompts}
    model = make(clips, "zero_shot", name, **options)
    video = clip(model.img_size)
    expected = theirs(clips[name], name, video, prompts or ACTION_PROMPTS)
    with torch.no_grad():
        found = model(video)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert model.config.prompts == tuple(prompts or ACTION_PROMPTS)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_from_text_starts_as_the_zero_shot_classifier(
    clips: dict[str, Any], method: str
) -> None:
    """Of equal frames, to its logits: of others it takes the mean before the projection."""
    options: dict[str, Any] = {"num_layers": 2} if method == "evl" else {}
    model = make(clips, method, head_init="text", **options)
    still = clip(48)[:, :, :1].expand(-1, -1, T, -1, -1)
    expected = theirs(clips["small-clip"], "small-clip", still, ACTION_PROMPTS)
    with torch.no_grad():
        found = model(still)
    if model.starts_as_image_model or method == "zero_shot":
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    else:  # a decoder or a pooling of its own, made of other features
        assert found.shape == expected.shape


def test_moving_frames_are_averaged_before_the_projection(clips: dict[str, Any]) -> None:
    model, zero = make(clips, "linear_probe", head_init="text"), make(clips, "zero_shot")
    video = clip(48)
    with torch.no_grad():
        found, expected = model(video), zero(video)
        frames = video.transpose(1, 2).flatten(0, 1)
        feature = model.view.pool(model.vit.blocks(model.embed(frames, T))).unflatten(0, (-1, T))
        own = model.head(feature.mean(1))
    torch.testing.assert_close(found, own)
    assert (found - expected).abs().max() > 1e-4
    # The cosine of the two means is what differs, and it is near one.
    torch.testing.assert_close(found, expected, atol=0.5, rtol=0)


def test_the_projection_is_kept_and_the_classes_are_trained(clips: dict[str, Any]) -> None:
    model = make(clips, "st_adapter", head_init="text").train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(lr=0.01))
    F.cross_entropy(model(clip(48)), torch.tensor([0, 1])).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"head.weight", "head.bias"} <= moved <= model.trained_names
    frozen = {"head.projection.weight", "head.projection.bias", "head.scale"}
    assert frozen.isdisjoint(model.trained_names)
    assert frozen <= set(model.adapter_state())
    assert sum(group["weight_decay"] > 0 for group in optimizer.param_groups) == 1


@pytest.mark.parametrize("method", ["zeroi2v", "lora", "temporal_heads"])
def test_merging_keeps_the_head(clips: dict[str, Any], method: str) -> None:
    model = make(clips, method, head_init="text").double()
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    x = clip(48).double()
    torch.testing.assert_close(model.merge()(x), model(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("method", "name"), [("zero_shot", "small-trunk"), ("aim", "small-clip")])
def test_the_texts_travel_and_no_text_tower_is_needed(
    clips: dict[str, Any], tmp_path: Path, method: str, name: str
) -> None:
    model = make(clips, method, name, head_init="text")
    video = clip(model.img_size)
    expected = model(video)
    vidpipe.save(model, tmp_path / "out", classes=NAMES)
    image_half = {
        n: t
        for n, t in load_file(clips["folder"] / f"{name}.safetensors").items()
        if n.startswith("visual.")
    }
    save_file(image_half, tmp_path / "image.safetensors")
    loaded = vidpipe.load(tmp_path / "out", weights=str(tmp_path / "image.safetensors"))
    assert torch.equal(loaded.model(video), expected)
    assert loaded.model.config.prompts == ACTION_PROMPTS
    assert not loaded.model.trained_names or method == "aim"
    frames = torch.zeros(T, 3, 60, 80, dtype=torch.uint8)
    assert loaded.features(frames).shape == (model.width,)
    assert loaded.features([]).shape == (0, model.width)


@pytest.mark.parametrize(
    ("method", "name", "options", "message"),
    [
        (
            *("zero_shot", "vit_tiny_patch16_224", {"weights": None}),
            "method zero_shot needs a text tower, and .* vit_tiny_.* of timm has none; .*ViT-B-16",
        ),
        (
            *("aim", "vit_tiny_patch16_224", {"head_init": "text", "weights": None}),
            "methods.aim.head_init: text needs a text tower, and .* of timm has none",
        ),
        (
            *("zero_shot", "open_clip:small-siglip", {}),
            "a tokenizer that works offline, and that of .* small-siglip .*timm/ViT-B-16-SigLIP.* hub",
        ),
        (
            "zero_shot",
            "open_clip:small-clip",
            {"weights": None},
            "needs trained weights of .* random",
        ),
        (
            *("zero_shot", "open_clip:small-clip", {"classes": None}),
            "method zero_shot needs the names of the 4 classes, and none were given",
        ),
        (
            *("lora", "open_clip:small-clip", {"classes": ["a"], "head_init": "text"}),
            "methods.lora.head_init: text needs the names of the 4 classes, and 1 were given",
        ),
        (
            *("zero_shot", "open_clip:small-clip", {"prompts": ["a video"]}),
            "prompts.0: expected one {} where the class name goes",
        ),
        (
            *("zero_shot", "open_clip:small-clip", {"pool": "avg"}),
            "needs the feature that open_clip small-clip projects, and backbone.pool is avg",
        ),
        ("zero_shot", "open_clip:small-clip", {"head_init": "random"}, "head_init: .*'text'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no weights were given")
def test_a_text_head_without_what_it_needs_is_one_line(
    clips: dict[str, Any], method: str, name: str, options: dict[str, Any], message: str
) -> None:
    short = name.removeprefix("open_clip:")
    own = {"num_classes": 4, "num_frames": T, "classes": NAMES}
    own["weights"] = clips["folder"] / f"{short}.safetensors"
    with pytest.raises(VidpipeError, match=message) as caught:
        vidpipe.create_model(method, name, **{**own, **options})
    assert "\n" not in str(caught.value)


def test_a_file_of_the_image_half_alone_is_refused(clips: dict[str, Any], tmp_path: Path) -> None:
    whole = load_file(clips["folder"] / "small-clip.safetensors")
    file = tmp_path / "half.safetensors"
    save_file({n: t for n, t in whole.items() if n.startswith("visual.")}, file)
    with pytest.raises(
        VidpipeError, match=f"needs the text half of the model, and {file} holds none"
    ):
        make(clips, "zero_shot", weights=file)
    whole.pop("ln_final.bias")
    save_file(whole, file)
    with pytest.raises(VidpipeError, match=r"missing keys: ln_final\.bias"):
        make(clips, "zero_shot", weights=file)
    whole["ln_final.bias"] = torch.full((32,), float("nan"))
    save_file(whole, file)
    with pytest.raises(VidpipeError, match=r"ln_final\.bias has numbers that are not finite"):
        make(clips, "zero_shot", weights=file)


def test_names_that_nobody_would_say_are_warned_of(clips: dict[str, Any]) -> None:
    names = ["move_left", "move_right", "surfing", "turn_clockwise"]
    with pytest.warns(UserWarning, match=r"3 of 4 class names .*\(move_left, move_right, turn_cl"):
        make(clips, "zero_shot", classes=names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(clips, "zero_shot")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("move_left", "move left", False),
        ("grow", "grow", False),
        ("turn_counterclockwise", "turn counterclockwise", False),
        ("class_3", "class 3", False),
        ("Back+15som+05Twis+FREE", "Back+15som+05Twis+FREE", False),
        ("c", "c", False),
        ("", "", False),
        ("brush_hair", "brush hair", True),
        ("ApplyEyeMakeup", "Apply Eye Makeup", True),
        ("TaiChi", "Tai Chi", True),
        ("Moving something from left to right", "Moving something from left to right", True),
        ("turning a page", "turning a page", True),
        ("pull-ups", "pull ups", True),
        ("jogging", "jogging", True),
    ],
)
def test_the_rule_for_names(name: str, words: str, said: bool) -> None:
    assert spoken(name) == words
    assert (unsayable([name]) == []) == said


@given(st.text())
def test_any_name_becomes_one_line_of_words(name: str) -> None:
    words = spoken(name)
    assert words == words.strip()
    assert "_" not in words
    assert "\n" not in words
    assert spoken(words) == words
    unsayable([name])


IDENTITIES = {
    "linear_probe": "cdd9af88af16",
    "st_adapter": "95a7375cf053",
    "aim": "042349c0a138",
    "zeroi2v": "5b7de4cf13e5",
    "evl": "a786e0ab1f0a",
}
"""At a rate of 1e-3, as they were before heads could start from text."""


@pytest.mark.parametrize("method", IDENTITIES)
def test_a_training_without_texts_keeps_its_identity(method: str) -> None:
    def identity(**options: Any) -> str:
        return config_hash(CONFIGS[method](lr=1e-3, **options))

    assert identity() == identity(prompts=["{}"]) == IDENTITIES[method]
    text = identity(head_init="text")
    assert len({text, identity(), identity(head_init="text", prompts=["{}"])}) == 3
