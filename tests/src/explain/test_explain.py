"""Explanations: maps against softmaxes by hand of the model's own queries and keys; the pictures."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matrix import every
from mlflow.tracking import MlflowClient
from PIL import Image
from project import PROJECT
from small_store import small_project
from swins import build as build_on_swin
from tiny import randomise, tiny_vit
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchvision.transforms import v2 as transforms
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.tools.explain import safe_name
from vidpipe.backbones.ops import shift_frames
from vidpipe.backbones.still import WEIGHTS
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.explain import attention_maps, explain_clip, grad_cam
from vidpipe.explain.attention import AttentionMaps
from vidpipe.explain.clip import Explanation, View
from vidpipe.methods.registry import METHODS, VideoModel, build_method
from vidpipe.new_model import new_model
from vidpipe.params import load_params
from vidpipe.trained.adapter import save_adapter
from vidpipe.trained.card import TrainedModel
from vidpipe.video.rendered import render_clip
from vidpipe.viz.explain import blend, enlarged, overlay, plot_strip, write_animation

T, GRID, CLASSES, HEADS = 4, (3, 4), 5, 4
PATCHES = GRID[0] * GRID[1]


def build(name: str, options: dict | None = None, vit: dict | None = None) -> VideoModel:
    """On a grid that is not square, so that rows and columns cannot be taken for each other."""
    config = METHODS[name].Config.model_validate(options or {})
    backbone = tiny_vit(**{"img_size": (24, 32), **(vit or {})})
    model = build_method(name, backbone, CLASSES, T, config)
    randomise(model, seed=2)
    return model.eval()


def clip(seed: int = 3) -> Tensor:
    return torch.randn(1, 3, T, 24, 32, generator=torch.Generator().manual_seed(seed))


def outputs(model: VideoModel, layer: nn.Module, video: Tensor | None = None) -> list[Tensor]:
    """Of every call of `layer` in one forward, for all tokens of the last block too."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, y: seen.append(y.detach()))
    model.every_token = True
    with torch.no_grad():
        model(clip() if video is None else video)
    model.every_token = False
    handle.remove()
    return seen


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """q (d,), k (N, d), by the textbook."""
    scores = torch.stack([(q * key).sum() / len(q) ** 0.5 for key in k])
    return scores.exp() / scores.exp().sum()


# -- attention -------------------------------------------------------------------------------


@every
def test_every_method_gives_probabilities_and_its_own_logits(name: str, options: dict) -> None:
    model = build(name, options)
    before = model(clip())[0]
    for block in (-1, 0):
        maps = attention_maps(model, clip(), block)
        assert torch.equal(maps.logits, before)
        assert maps.heads.shape == (T, HEADS, *GRID)
        assert maps.heads.min() >= 0
        total = maps.heads.sum((2, 3)) + maps.elsewhere
        torch.testing.assert_close(total, torch.ones(T, HEADS))
        for rows in (maps.over_time, maps.class_token_over_time()):
            if rows is not None:
                torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        if maps.clip_query is not None:
            assert (maps.clip_query.sum((1, 2, 3)) < 1).all()
    assert torch.equal(model(clip())[0], before)
    shifted = set(maps.offsets) != {0}
    assert shifted <= (not model.order_blind)


@pytest.mark.parametrize("vit", [{}, {"reg_tokens": 2}], ids=["plain", "registers"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("linear_probe", {}), ("st_adapter", {}), ("aim", {}), ("prompt_tuning", {"num_tokens": 3})],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("block", [-1, 1])
def test_maps_are_the_softmax_of_the_models_own_queries_and_keys(
    name: str, options: dict, vit: dict, block: int
) -> None:
    model = build(name, options, vit)
    maps = attention_maps(model, clip(), block)
    qkv = outputs(model, model.blocks[block].attn.qkv)[-1]  # AIM's last call is over space
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)
    for t in range(T):
        for h in range(HEADS):
            expected = probabilities(q[t, 0, h], k[t, :, h])
            for row in range(GRID[0]):
                for column in range(GRID[1]):
                    patch = -PATCHES + row * GRID[1] + column
                    own = maps.heads[t, h, row, column]
                    torch.testing.assert_close(own, expected[patch], atol=1e-6, rtol=1e-4)
    assert maps.offsets == (0,) * HEADS


@pytest.mark.parametrize("name", ["zeroi2v", "temporal_heads", "lora"])
def test_a_temporal_head_shows_the_keys_of_another_frame(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the unshifted keys, at the frame that `key_frame` says; its own at the clip's ends."""
    offsets = (-1, 2, 1)
    model = build(name, {"head_offsets": offsets})
    maps = attention_maps(model, clip())
    assert maps.offsets == (-1, 2, 1, 0)
    unshifted: list[Tensor] = []
    original = type(model).qkv

    def watched(self: Any, index: int, *rest: Any) -> Any:
        found = original(self, index, *rest)
        if index == len(model.blocks) - 1:
            unshifted.extend(x.detach().unflatten(-1, (HEADS, -1)) for x in found[:2])
        return found

    monkeypatch.setattr(type(model), "qkv", watched)
    model(clip())
    q, k = unshifted
    for t in range(T):
        for h, dt in enumerate(maps.offsets):
            source = t + dt if 0 <= t + dt < T else t
            assert maps.key_frame(t, dt) == source
            expected = probabilities(q[t, 0, h], k[source, :, h])[-PATCHES:].view(GRID)
            torch.testing.assert_close(maps.heads[t, h], expected, atol=1e-6, rtol=1e-4)


def test_key_frames_follow_the_rule_of_the_shift() -> None:
    numbers = torch.arange(float(T)).view(T, 1, 1).expand(T, 2, 7)
    offsets = (-4, -2, -1, 0, 1, 3, 9)
    shifted = shift_frames(numbers, T, tuple((1, dt) for dt in offsets))
    maps = SimpleNamespace(num_frames=T)
    for t in range(T):
        own = [AttentionMaps.key_frame(maps, t, dt) for dt in offsets]  # type: ignore[arg-type]
        assert own == shifted[t, 0].tolist()


def test_permuted_frames_permute_the_maps_of_spatial_heads_only() -> None:
    order = [2, 0, 3, 1]
    for name, options, moved in (
        ("linear_probe", {}, [0, 1, 2, 3]),
        ("zeroi2v", {"head_offsets": [[], [], [-1, 1]]}, [2, 3]),
    ):
        model = build(name, options)
        if name == "zeroi2v":
            nn.init.zeros_(model.temporal_embedding.weight)
        maps, permuted = (attention_maps(model, x) for x in (clip(), clip()[:, :, order]))
        same = [
            h
            for h in range(HEADS)
            if torch.allclose(permuted.heads[:, h], maps.heads[order, h], atol=1e-6)
        ]
        assert same == moved


def test_heads_that_mix_frames_say_so() -> None:
    for name, options in (
        ("zeroi2v", {"shift_ratio": 0.5}),
        ("full_finetune", {"architecture": "shift"}),
    ):
        model = build(name, options)
        assert attention_maps(model, clip()).offsets == (None,) * HEADS
    moved = build("zeroi2v", {"shift_ratio": 0.5, "shifted": "cls"})
    assert attention_maps(moved, clip()).offsets == (0,) * HEADS
    per_block = build("zeroi2v", {"head_offsets": [[-1], [1], [-2, 2]]})
    assert attention_maps(per_block, clip(), 0).offsets == (-1, 0, 0, 0)
    assert attention_maps(per_block, clip(), -1).offsets == (-2, 2, 0, 0)


@pytest.mark.parametrize(
    ("name", "options"), [("aim", {}), ("full_finetune", {"architecture": "divided"})]
)
def test_attention_over_time(name: str, options: dict) -> None:
    model = build(name, options)
    maps = attention_maps(model, clip())
    last = model.blocks[-1].attn if name == "aim" else model.temporal[-1].attn
    qkv = outputs(model, last.qkv)[0]
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)  # (N, T, H, d)
    extra = len(q) - PATCHES
    assert maps.over_time is not None
    assert maps.over_time.shape == (HEADS, len(q), T, T)
    for h, n, t in [(0, 0, 1), (3, 5, 2), (1, PATCHES - 1, 0)]:
        expected = probabilities(q[n, t, h], k[n, :, h])
        torch.testing.assert_close(maps.over_time[h, n, t], expected, atol=1e-6, rtol=1e-4)
    received = maps.from_other_frames()
    assert received is not None
    row, column, s = 2, 1, 3
    a = maps.over_time[:, extra + row * GRID[1] + column].mean(0)
    others = [a[t, s] for t in range(T) if t != s]
    torch.testing.assert_close(received[s, row, column], torch.stack(others).mean())
    assert (maps.class_token_over_time() is None) == (name != "aim")
    if name == "aim":
        torch.testing.assert_close(maps.class_token_over_time(), maps.over_time[:, 0].mean(0))


def test_as_many_frames_as_tokens_are_still_told_apart() -> None:
    """AIM's two attentions then have the same shape; only their order differs."""
    model = build_method("aim", tiny_vit(img_size=16), CLASSES, 5, METHODS["aim"].Config())
    randomise(model, seed=2)
    video = torch.randn(1, 3, 5, 16, 16)
    maps = attention_maps(model.eval(), video)
    assert maps.heads.shape == (5, HEADS, 2, 2)
    seen = outputs(model, model.blocks[-1].attn.qkv, video)
    for found, layer in ((maps.over_time, seen[0]), (None, seen[1])):
        q, k, _ = layer.unflatten(-1, (3, HEADS, -1)).unbind(2)
        expected = probabilities(q[0, 0, 1], k[0, :, 1])
        own = maps.heads[0, 1].flatten() if found is None else found[1, 0, 0]
        expected = expected[1:] if found is None else expected
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["attentional_pooling", "evl"])
def test_the_query_of_a_clip_reads_the_tokens_of_all_frames(name: str) -> None:
    model = build(name, {"num_layers": 2} if name == "evl" else {}, {"reg_tokens": 1})
    pool = model.decoder[-1].attn if name == "evl" else model.pool
    q, k = (outputs(model, layer)[-1].unflatten(-1, (HEADS, -1)) for layer in (pool.q, pool.k))
    found = attention_maps(model, clip()).clip_query
    assert found is not None
    for h in range(HEADS):
        expected = probabilities(q[0, 0, h], k[0, :, h]).view(T, 2 + PATCHES)[:, 2:]
        torch.testing.assert_close(found[h].flatten(1), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear_probe", "aim", "attentional_pooling"])
def test_one_frame_has_no_query_of_its_clip(name: str) -> None:
    """The last block's one query must not be taken for a decoder's, nor a decoder's for its."""
    model = build_method(name, tiny_vit(), CLASSES, 1, METHODS[name].Config())
    randomise(model, seed=2)
    video = torch.randn(1, 3, 1, 32, 32)
    maps = attention_maps(model.eval(), video)
    qkv = outputs(model, model.blocks[-1].attn.qkv, video)[-1]
    q, k, _ = qkv.unflatten(-1, (3, HEADS, -1)).unbind(2)
    expected = probabilities(q[0, 0, 1], k[0, :, 1])[1:]
    torch.testing.assert_close(maps.heads[0, 1].flatten(), expected, atol=1e-6, rtol=1e-4)
    assert (maps.clip_query is not None) == (name == "attentional_pooling")


def test_without_a_class_token_it_is_the_mean_over_queries() -> None:
    vit = {"class_token": False, "global_pool": "avg"}
    model = build("linear_probe", {}, vit)
    maps = attention_maps(model, clip())
    q, k, _ = outputs(model, model.blocks[-1].attn.qkv)[0].unflatten(-1, (3, HEADS, -1)).unbind(2)
    expected = torch.stack([probabilities(one, k[1, :, 2]) for one in q[1, :, 2]]).mean(0)
    torch.testing.assert_close(maps.heads[1, 2].flatten(), expected, atol=1e-6, rtol=1e-4)
    assert not maps.elsewhere.any()


def test_what_cannot_be_explained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VidpipeError, match="linear_probe is on a Swin"):
        attention_maps(build_on_swin("linear_probe", {}), torch.zeros(1, 3, T, 56, 56))
    model = build("linear_probe")
    with pytest.raises(VidpipeError, match=r"block 3 is not in this backbone.*0\.\.2"):
        attention_maps(model, clip(), 3)
    with pytest.raises(VidpipeError, match="expected one clip"):
        attention_maps(model, clip().repeat(2, 1, 1, 1, 1))
    evl = build("evl", {"num_layers": 1})  # runs its first blocks as timm has them
    evl.blocks[0].attn.fused_attn = False
    with pytest.raises(VidpipeError, match="TIMM_FUSED_ATTN"):
        attention_maps(evl, clip(), 0)
    with pytest.raises(VidpipeError, match="evl runs its backbone without gradients"):
        grad_cam(evl, clip(), 0)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(VidpipeError, match=re.escape("pip install 'vidpipe[explain]'")):
        grad_cam(model, clip(), 0)


# -- Grad-CAM ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name != "evl"])
def test_grad_cam_is_that_of_the_paper(name: str) -> None:
    """By hand: mean gradient of a channel over all patches, times the channel, summed, at least 0."""
    model = build(name)
    before = [t.clone() for t in model.state_dict().values()]
    cams = [grad_cam(model, clip(), target) for target in range(CLASSES)]
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, y: Tensor) -> None:
        y.retain_grad()
        seen.append(y)

    handle = model.blocks[-1].norm1.register_forward_hook(keep)
    for target, cam in enumerate(cams):
        seen.clear()
        model(clip().requires_grad_())[0, target].backward()
        tokens, gradient = seen[-1].detach()[:, -PATCHES:], seen[-1].grad[:, -PATCHES:]
        weights = gradient.flatten(0, 1).mean(0)
        expected = (tokens @ weights).clamp(min=0).view(T, *GRID)
        torch.testing.assert_close(cam, expected, atol=1e-6, rtol=1e-3)
    handle.remove()
    assert sum(cam.any() for cam in cams) >= CLASSES - 1


# -- a clip and its pictures -------------------------------------------------------------------


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
        **dict.fromkeys(("attentional_pooling", "evl"), "query of the clip over all frames"),
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


# -- the command ---------------------------------------------------------------------------------


def test_names_of_files_are_safe_and_unique() -> None:
    assert safe_name("clip_01.a-b") == "clip_01.a-b"
    names = {safe_name(id_) for id_ in ("a/b", "a_b", "a b", "../a_b", ".a_b", "x" * 300)}
    assert len(names) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) for name in names)


def explain(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["explain", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


def test_the_command_writes_and_tracks_pictures_of_clips(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_folder}/mlflow.db")
    small_project(in_folder)
    with pytest.raises(VidpipeError, match=r"models/zeroi2v/adapter/config\.json: no such file"):
        explain("--method", "zeroi2v")
    trained = new_model(load_params(Path("params.yaml"), []), "zeroi2v", ["a", "b"])
    for tensor in trained.model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    save_adapter(Path("models/zeroi2v/adapter"), trained, {})

    command = ("--method", "zeroi2v", "--clips", "2", "--grad-cam")
    printed = explain(*command)
    folder = Path("models/zeroi2v/explanation")
    assert sorted(map(Path, printed)) == sorted(folder.iterdir())
    ids = {Path(path).stem for path in printed}
    assert len(ids) == 2
    assert ids < {"c7", "c8", "c9"}  # the store's val clips
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert explain(*command) == printed
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    client = MlflowClient(f"sqlite:///{in_folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vidpipe")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])  # the second call found the first's
    assert run.data.tags["vidpipe.stage"] == "explain"
    logged = client.list_artifacts(run.info.run_id, "explanation")
    assert {Path(file.path).name for file in logged} == set(first)

    printed = explain("--method", "zeroi2v", "--class", "b", "--clips", "9")
    assert [Path(path).name for path in printed] == ["c7.png", "c7.gif", "c9.png", "c9.gif"]
    shown = set(folder.iterdir())
    for wrong, message in (
        (("--class", "bb"), "--class bb: no such class; nearest is b"),
        (("--split", "test"), "expected train or val"),
        (("--target", "a"), "add --grad-cam"),
        (("--block", "4"), "blocks are 0..3"),
    ):
        with pytest.raises(VidpipeError, match=re.escape(message)):
            explain("--method", "zeroi2v", *wrong)
    assert set(folder.iterdir()) == shown  # what failed left the folder as it was
