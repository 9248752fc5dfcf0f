"""A clip and its pictures: what lies where, and the same bytes for the same clip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from project import PROJECT
from tiny import randomise, tiny_vit
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchvision.transforms import v2 as transforms

from vidpipe.backbones.still import WEIGHTS
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.explain import attention_maps, explain_clip
from vidpipe.explain.clip import Explanation, View
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.new_model import new_model
from vidpipe.params import load_params
from vidpipe.trained.trained_model import TrainedModel
from vidpipe.video.rendered import render_clip
from vidpipe.viz.explain import blend, enlarged, overlay, plot_strip, write_animation

T = 4


def trained_model(name: str, options: dict | None = None, size: int = 32) -> TrainedModel:
    config = METHODS[name].Config.model_validate(options or {})
    model = build_method(name, tiny_vit(img_size=size), 2, T, config)
    randomise(model, seed=2)
    backbone: Any = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    transform = TransformConfig(size=size)
    return TrainedModel(model.eval(), backbone, ["left", "$right_"], sampling, transform)


def frames(size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (T, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", list(METHODS))
def test_overlay_of_every_method(name: str) -> None:
    trained = trained_model(name, {"num_layers": 2} if name == "evl" else {})
    first, second, captions = overlay(trained, frames())
    for picture in (first, second):
        assert picture.shape == frames().shape
        assert picture.dtype == torch.uint8
        assert not torch.equal(picture, frames())
    seconds = {
        "aim": "attention over time from other frames",
        **dict.fromkeys(("zeroi2v", "lora", "temporal_heads"), "temporal heads"),
        **dict.fromkeys(
            ("attentional_pooling", "attentive_probe", "evl"), "query of the clip over all frames"
        ),
        "temporal_finetune": "attention over time from other frames",
    }
    assert captions == ["spatial heads", seconds.get(name, "spatial heads")]
    assert torch.equal(first, second) == (name not in seconds)


def test_temporal_maps_lie_on_the_frame_that_is_looked_at() -> None:
    trained = trained_model("zeroi2v", {"head_offsets": [-1, 2, 2]})
    explanation = explain_clip(trained, frames())
    titles = [view.title.replace("\n", ", ") for view in explanation.views]
    assert titles == [
        "spatial heads, 1 of 4 heads",
        "temporal heads, keys of frame t \N{MINUS SIGN} 1, 1 of 4 heads",
        "temporal heads, keys of frame t + 2, 2 of 4 heads",
    ]
    back, forward = explanation.views[1:]
    assert back.frames == (0, 0, 1, 2)
    assert forward.frames == (2, 3, 2, 3)
    merged = explanation.view("temporal")
    assert merged is not None
    expected = [
        back.maps[1],  # frame 1 looks back at 0; nobody looks two ahead at it
        back.maps[2],
        (back.maps[3] + forward.maps[0]) / 2,
        forward.maps[1],
    ]
    torch.testing.assert_close(merged.maps, torch.stack(expected))
    video = (frames().transpose(0, 1).float() / 255 - 0.5) / 0.5
    heads = attention_maps(trained.model, video[None]).heads
    torch.testing.assert_close(forward.maps, heads[:, 1:3].mean(1), atol=1e-5, rtol=1e-4)
    only_temporal = trained_model("zeroi2v", {"head_offsets": [-1, -1, 1, 1]})
    assert overlay(only_temporal, frames())[2] == ["temporal heads"] * 2


def test_two_threads_may_explain_with_the_same_model() -> None:
    trained = trained_model("aim")
    videos = [frames().roll(i, 0) for i in range(T)]
    alone = [explain_clip(trained, video, grad_cam=True) for video in videos]
    with ThreadPoolExecutor(T) as pool:
        together = list(pool.map(lambda video: explain_clip(trained, video, grad_cam=True), videos))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one.views, other.views, strict=True):
            assert torch.equal(a.maps, b.maps), a.title


def test_grad_cam_explains_the_predicted_or_the_given_class() -> None:
    trained = trained_model("zeroi2v")
    plain = explain_clip(trained, frames())
    assert plain.view("grad_cam") is None
    assert torch.allclose(plain.probabilities.sum(), torch.tensor(1.0))
    predicted = int(plain.probabilities.argmax())
    views = [
        explain_clip(trained, frames(), grad_cam=True, target=target).view("grad_cam")
        for target in (None, predicted, 1 - predicted)
    ]
    assert all(view is not None for view in views)
    assert torch.equal(views[0].maps, views[1].maps)
    assert not torch.equal(views[0].maps, views[2].maps)
    assert views[2].title.endswith(trained.classes[1 - predicted])
    for wrong in (frames().float(), frames(16), frames()[:, :1]):
        with pytest.raises(VidpipeError, match=r"expected uint8 frames \(T, 3, 32, 32\)"):
            explain_clip(trained, wrong)


def test_the_brightest_place_is_the_patch_with_most_attention() -> None:
    maps = torch.zeros(2, 3, 4)
    maps[0, 2, 1], maps[1, 0, 3] = 1.0, 0.5
    black = torch.zeros(2, 3, 24, 32, dtype=torch.uint8)
    shown = blend(black, maps).float().mean(1)
    for t, (row, column) in enumerate([(2, 1), (0, 3)]):
        brightness = shown[t].unflatten(1, (4, 8)).unflatten(0, (3, 8)).mean((1, 3))
        assert brightness.flatten().argmax() == row * 4 + column
    assert shown[0].max() > shown[1].max() + 30  # one scale for the whole clip
    flat = blend(frames(24), torch.full((T, 3, 3), 0.1))
    assert flat.float().std() > 10  # a map without differences hides nothing
    assert enlarged(frames(48)).shape[-1] == 240
    assert torch.equal(enlarged(frames(224)), frames(224))


def test_on_the_demo_the_class_token_looks_at_the_moving_object() -> None:
    """Clips and backbone of the demo; untrained, so what the stills have taught it."""
    params = load_params(PROJECT / "params.yaml", [{"backbone": {"weights": str(WEIGHTS)}}])
    trained = new_model(params, "linear_probe", list(params.synth.classes))
    trained.model.eval()
    on_object, shares, areas = [], [], []
    for index, name in enumerate(params.synth.classes):
        rendered = torch.from_numpy(render_clip(params.synth, name, index))
        chosen = rendered[torch.linspace(0, len(rendered) - 1, 8).long()].permute(0, 3, 1, 2)
        video = transforms.CenterCrop(48)(transforms.Resize(48, antialias=True)(chosen))
        view = explain_clip(trained, video).view("spatial")
        assert view is not None
        background = video.flatten(2).median(2).values[..., None, None].float()
        differs = ((video - background).abs().amax(1) > 40).float()
        covered = avg_pool2d(differs, 12).flatten(1) > 0.05  # of a patch, by the object
        maps = view.maps.flatten(1)
        on_object.append(covered.gather(1, maps.argmax(1, keepdim=True)).float().mean())
        shares.append((maps * covered).sum() / maps.sum())
        areas.append(covered.float().mean())
    on_object, share, area = (float(torch.stack(x).mean()) for x in (on_object, shares, areas))
    assert area < 0.45
    assert share > 2 * area
    assert on_object > 0.95


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    found = explain_clip(trained_model("aim"), frames(), grad_cam=True)
    mixed = View(
        "temporal", "temporal heads\nkeys of frame t + 1", found.views[0].maps, (1, 2, 3, 3)
    )
    return replace(found, views=[*found.views, mixed])


@pytest.mark.parametrize("write", [plot_strip, write_animation])
def test_the_same_clip_gives_the_same_bytes(
    explanation: Explanation, write: Callable[..., None], tmp_path: Path
) -> None:
    a, b = (tmp_path / f"{name}.{'png' if write is plot_strip else 'gif'}" for name in "ab")
    for path in (a, b):
        write(explanation, "$title_: 100 %", path)
    assert a.read_bytes() == b.read_bytes()
    with Image.open(a) as picture:
        if write is plot_strip:
            assert picture.format == "PNG"
            # Six rows of frames, 1.25 inches each, and the class token's matrix.
            assert picture.height > 6 * 1.25 * 150
        else:
            assert (picture.format, picture.n_frames) == ("GIF", T)
            assert picture.info["duration"] == 250
            assert picture.height >= 224
            assert picture.width > 4 * 224  # input, space, time, Grad-CAM
            first = picture.convert("RGB").tobytes()
            picture.seek(1)
            assert picture.convert("RGB").tobytes() != first


def test_a_long_clip_is_thinned_out_in_a_strip(tmp_path: Path) -> None:
    long, view = frames().repeat(8, 1, 1, 1), torch.rand(32, 4, 4)
    views = [View("spatial", "spatial heads", view, tuple(range(32)))]
    plot_strip(Explanation(long, views, None, torch.ones(1)), "long", tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as picture:
        assert 16 * 1.25 * 150 < picture.width < 20 * 1.25 * 150
