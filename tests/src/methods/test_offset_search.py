"""`head_offsets: auto`: heads are weighed as the loss says, and what is found is an ordinary design."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from echo_clips import LAG, Echo, T
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from schema_fields import RAW
from tiny import randomise, tiny_vit
from trainings import settings as train_settings

import vidpipe
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.config.overlay import deep_merge
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.methods.config import OffsetBudget
from vidpipe.methods.offset_search import (
    Round,
    covering_design,
    found_design,
    frame_sources,
    full,
    heads_allowed,
    mixing,
    saved_by_head,
    trimmed,
)
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.methods.stdha import STDHA
from vidpipe.params import parse_params
from vidpipe.training.loop import Trainer
from vidpipe.viz.offsets import plot_offsets

DEPTH, HEADS = 3, 4
SHIFTED = ("zeroi2v", "lora", "temporal_heads")


def build(name: str, design: Any, frames: int = 4, **options: object) -> STDHA:
    torch.manual_seed(0)
    own = {"rank": 4} if name == "lora" else {}
    config = METHODS[name].Config.model_validate({"head_offsets": design, **own, **options})
    model = build_method(name, tiny_vit(), 3, frames, config)
    randomise(model)
    return cast(STDHA, model.eval())


def batches(clips: int = 6, frames: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    video = torch.randn(clips, 3, frames, 32, 32, generator=generator)
    target = torch.arange(clips) % 3
    return [(video[:4], target[:4]), (video[4:], target[4:])]


@torch.no_grad()
def loss_of(model: STDHA) -> float:
    own = [torch.nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in batches()]
    return float(torch.stack(own).sum() / 6)


designs = st.lists(
    st.lists(st.integers(-3, 3), max_size=HEADS), min_size=DEPTH, max_size=DEPTH
).map(lambda rows: tuple(map(tuple, rows)))


@settings(deadline=None, max_examples=25)
@given(design=designs, name=st.sampled_from(SHIFTED[:2]))
@torch.no_grad()
def test_heads_that_mix_one_frame_are_shifted_heads_to_the_bit(design: Any, name: str) -> None:
    """Whatever is weighed ends, at the far end of its way, in the model that is trained anew."""
    model = build(name, design)
    (video, _), _ = batches()
    expected = model(video)
    assert trimmed(full(model)) == trimmed(design)
    where = torch.stack([frame_sources(4, dts) for dts in full(model)])
    with mixing(model, where):
        assert torch.equal(model(video), expected)
    assert torch.equal(model(video), expected)


@pytest.mark.parametrize("name", SHIFTED)
def test_what_heads_save_adds_up_to_what_the_design_saves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The completeness of integrated gradients, with many points on the way of a smooth model."""
    monkeypatch.setattr("vidpipe.methods.offset_search.POINTS", 32)
    model = build(name, [[-1, 0, 2], [1], [-1, 1, -2, 2]])
    with torch.no_grad():
        for parameter in model.vit.parameters():
            parameter *= 0.6
    asked = {n for n, p in model.named_parameters() if p.requires_grad}
    saved = saved_by_head(model, full(model), batches())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == asked
    assert all(p.grad is None for p in model.parameters())
    moved = torch.tensor(full(model)) != 0
    assert (saved[~moved] == 0).all()
    assert (saved[moved] != 0).any()
    with_design = loss_of(model)
    with mixing(model, frame_sources(4, (0,)).expand(DEPTH, HEADS, -1, -1)):
        without = loss_of(model)
    assert abs(without - with_design) > 1e-3
    assert float(saved.sum()) == pytest.approx(without - with_design, rel=0.03)


@settings(deadline=None, max_examples=5)
@given(most=st.integers(1, DEPTH * HEADS), reach=st.integers(1, 3))
def test_the_budget_is_kept_and_offsets_are_those_that_were_trained(most: int, reach: int) -> None:
    covering = covering_design(DEPTH, HEADS, reach)
    model = build("zeroi2v", covering)
    design, rounds = found_design(model, most, batches())
    assert 1 <= sum(dt != 0 for dts in design for dt in dts) <= most
    for dts, own in zip(design, covering, strict=True):
        assert all(dt in (0, o) for dt, o in zip(dts, own, strict=False))
        assert not dts or dts[-1] != 0
    assert rounds[0].design == covering
    counts = [sum(dt != 0 for dts in own.design for dt in dts) for own in rounds]
    assert counts == sorted(counts, reverse=True)
    again, _ = found_design(model, most, batches())
    assert again == design


@given(
    depth=st.integers(1, 24),
    heads=st.integers(1, 24),
    share=st.floats(0, 1),
    reach=st.integers(1, 8),
)
def test_the_share_is_of_all_heads_and_none_is_refused(
    depth: int, heads: int, share: float, reach: int
) -> None:
    budget = OffsetBudget(share=share, reach=reach)
    if share * depth * heads + 1e-9 < 1:
        with pytest.raises(VidpipeError, match=r"zeroi2v\.head_offsets: a share of .* leaves none"):
            heads_allowed(budget, depth, heads, 16, "zeroi2v")
        return
    most = heads_allowed(budget, depth, heads, 16, "zeroi2v")
    assert 1 <= most <= share * depth * heads + 1e-6
    covering = covering_design(depth, heads, reach)
    assert {abs(dt) for dts in covering for dt in dts} <= set(range(reach + 1))
    if depth * heads >= 2 * reach + 1:
        assert {dt for dts in covering for dt in dts} == set(range(-reach, reach + 1))


def test_a_reach_beyond_the_clip_is_refused() -> None:
    with pytest.raises(
        VidpipeError, match="a reach of 4, but a clip has 4 frames; it is at most 3"
    ):
        heads_allowed(OffsetBudget(reach=4), 3, 4, 4, "lora")


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("auto", ["auto", {"share": 0.5, "reach": 1}])
def test_a_model_is_not_made_of_auto(name: str, auto: Any) -> None:
    with pytest.raises(VidpipeError, match=rf"{name}\.head_offsets: auto is found by") as error:
        build(name, auto)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("atuo", r"^methods\.lora\.head_offsets: expected offsets such as .*, got 'atuo'$"),
        ([1, "x"], r"^methods\.lora\.head_offsets: expected offsets"),
        ({"share": 2}, r"^methods\.lora\.head_offsets: share: Input should be less than or equal"),
        ({"shar": 0.5}, r"^methods\.lora\.head_offsets: shar: unknown key; nearest is share$"),
        ([10**7], r"^methods\.lora\.head_offsets: expected a number of at most 1,000,000"),
    ],
)
def test_what_is_no_offset_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(VidpipeError, match=message):
        parse_params(deep_merge(RAW, {"methods": {"lora": {"head_offsets": value}}}))


# -- a problem in which only the offsets matter ----------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> tuple[STDHA, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A model with all offsets up to 2, on clips in which neighbouring frames say nothing."""
    design = covering_design(4, 6, 2)
    model = echo_model(design)
    own = Echo(64, False)
    items = [own[i] for i in range(64)]
    video = torch.stack([item["video"] for item in items])
    x = to_input(video, model.backbone.mean, model.backbone.std)
    labels = torch.tensor([item["label"] for item in items])
    top1 = fit(model, 6)
    assert top1 > 0.9
    return model, [(x[i : i + 32], labels[i : i + 32]) for i in (0, 32)]


def echo_model(design: Any) -> STDHA:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = vidpipe.create_model(
        *("zeroi2v", ARCHITECTURE),
        **{"num_classes": 2, "num_frames": T, "weights": WEIGHTS, "head_dropout": 0.0},
        **{"head_offsets": [list(dts) for dts in design], "lr": 2e-3},
    )
    return cast(STDHA, model)


def fit(model: STDHA, epochs: int) -> float:
    own = train_settings(epochs=epochs, warmup_epochs=1, eval_every=epochs)
    normalisation = model.backbone.mean, model.backbone.std
    history = Trainer(model, Echo(128, False), Echo(32, True), own, normalisation).run()
    assert history[-1].val_top1 is not None
    return history[-1].val_top1


@pytest.mark.slow
def test_heads_that_look_two_frames_away_are_found(trained: Any) -> None:
    model, own = trained
    design, rounds = found_design(model, 3, own)
    found = [dt for dts in design for dt in dts if dt]
    assert sum(abs(dt) == LAG for dt in found) > len(found) / 2, design
    last = rounds[-1]
    saved, dts = np.array(last.saved), np.array(last.design)
    assert abs(dts.flat[saved.argmax()]) == LAG


def test_the_picture_of_a_search_says_the_same_twice(tmp_path: Any) -> None:
    covering = covering_design(DEPTH, HEADS, 2)
    rounds = [Round(covering, ((0.1, -0.2, 0.3, 0.0),) * DEPTH)] * 2
    for name in ("one.png", "two.png"):
        plot_offsets(((), (0, 2), (-1,)), HEADS, rounds, "zeroi2v", tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert imread(tmp_path / "one.png").shape[1] > 600
