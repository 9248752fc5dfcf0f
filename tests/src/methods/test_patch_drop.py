"""Training on some of the patches: which stay, what a model makes of them, and when all are back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, GRID, size_of, tiny_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import randomise, tiny_vit
from trainings import first_gradients, make, trainer, weights

from vidpipe.errors import VidpipeError
from vidpipe.methods.patch_drop import PatchDrop, motion
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import saved_by_block
from vidpipe.training.metrics import EpochTiming
from vidpipe.training.state import Checkpoints

T = 4
KEYS = torch.tensor([7, 2**32 - 1])


@settings(deadline=None, max_examples=30)
@given(
    share=st.floats(0, 0.99),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    by=st.sampled_from(["random", "motion"]),
)
def test_the_share_is_kept_in_order_and_each_clip_has_its_own(
    share: float, rows: int, columns: int, by: Any
) -> None:
    video = torch.rand(3, 3, T, 8 * rows, 8 * columns)
    keys = torch.tensor([1, 2, 3])
    kept = PatchDrop(share, by)(video, (rows, columns), keys)
    count = rows * columns
    assert kept.shape == (3, max(1, count - round(share * count)))
    assert (kept.diff(dim=1) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < count
    alone = PatchDrop(share, by)(video[1:2], (rows, columns), keys[1:2])
    assert torch.equal(alone, kept[1:2])


def test_every_patch_stays_equally_often_at_random() -> None:
    kept = PatchDrop(0.75)(torch.zeros(4000, 3, 1, 4, 4), (4, 4), torch.arange(4000))
    share = torch.bincount(kept.flatten(), minlength=16) / 4000
    torch.testing.assert_close(share, torch.full((16,), 0.25), atol=0.03, rtol=0)


def test_by_motion_the_patches_that_change_stay() -> None:
    video = torch.zeros(2, 3, T, 32, 32)
    video[0, :, 1::2, 8:16, 24:] = 1.0  # row 1, column 3
    video[0, :, 2, 16:24, :8] = 0.5  # row 2, column 0
    moving = motion(video, (4, 4))
    assert moving[0].nonzero().flatten().tolist() == [7, 8]
    kept = PatchDrop(14 / 16, "motion")(video, (4, 4), KEYS)
    assert kept[0].tolist() == [7, 8]
    still = PatchDrop(14 / 16)(video, (4, 4), KEYS)
    assert torch.equal(kept[1], still[1])  # nothing moves there: as at random


def dropping(name: str, vit: torch.nn.Module, share: float = 0.5, **options: Any) -> Any:
    config = METHODS[name].Config.model_validate({"head_dropout": 0.0, **options})
    model = build_method(name, vit, 3, T, config)
    randomise(model)
    model.patch_drop = PatchDrop(share)
    model.clip_keys.now = KEYS
    return model


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "beit"])
def test_each_family_runs_on_the_patches_that_stay_at_their_own_places(family: str) -> None:
    """The reference is timm's own blocks on tokens that are picked by hand, frame by frame."""
    vit: Any = tiny_of(family)
    model = dropping("linear_probe", vit).train()
    video = torch.randn(2, 3, T, size_of(family), size_of(family))
    logits = model(video)
    kept = model.patch_drop(video, (GRID, GRID), KEYS)
    prefix, features = model.view.num_prefix_tokens, []
    for clip, own in zip(video, kept, strict=True):
        frames = clip.transpose(0, 1)
        x = model.view.norm_pre(model.view.embed(frames))
        x = torch.cat([x[:, :prefix], x[:, prefix:][:, own]], dim=1)
        for index, block in enumerate(vit.blocks):
            rope = model.view.rope(index) if hasattr(model.view, "rope") else None
            x = block(x) if rope is None else block(x, rope=rope[..., own, :])
        features.append(model.view.pool(x).mean(0))
    expected = model.head(torch.stack(features))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    model.patch_drop = None
    assert (model(video) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"zero_shot", "evl"}))
def test_each_method_trains_on_them(name: str) -> None:
    model = dropping(name, tiny_vit())
    seen: list[int] = []
    model.view.blocks[1].norm1.register_forward_hook(lambda m, i, o: seen.append(i[0].shape[-2]))
    video = torch.randn(2, 3, T, 32, 32)
    model.train()(video).sum().backward()
    more = model.config.num_tokens if name == "prompt_tuning" else 0
    assert seen
    assert set(seen) <= {9, 9 + more, T, T + 1}  # frames, or patches over time
    gradients = [p.grad for n, p in model.named_parameters() if n in model.trained_names]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    half = model(video)
    model.patch_drop = PatchDrop(0.0)
    whole = model(video)
    model.patch_drop = None
    torch.testing.assert_close(whole, model(video), atol=0, rtol=0)
    assert not torch.allclose(half, whole)
    model.patch_drop = PatchDrop(0.5)
    assert torch.equal(model.eval()(video), whole) or name in (
        "aim",
        "zeroi2v",
    )  # drop path, dropout


def test_validation_and_the_last_steps_see_every_patch() -> None:
    model = make()
    seen: list[tuple[bool, int]] = []
    model.view.blocks[1].norm1.register_forward_hook(
        lambda m, i, o: seen.append((model.training, i[0].shape[-2])) if not m.training else None
    )
    trainer(model, epochs=2, patch_drop=0.75, patch_drop_until=0.5).run()
    trained = [tokens for training, tokens in seen if training]
    assert trained[0] == 1 + 4
    assert trained[-1] == 1 + 16
    assert {tokens for training, tokens in seen if not training} == {1 + 16}
    assert model.patch_drop is None


def test_the_last_steps_fit_the_memory_that_was_asked_for() -> None:
    """Blocks to recompute are chosen once, so for all patches where some steps have them."""
    saved = saved_by_block(make("aim"), 32)
    budget = 8 * 0.8 * (sum(saved.blocks) + saved.rest) / 2**30
    chosen = []
    for own in ({}, {"patch_drop": 0.5, "patch_drop_until": 0.5}, {"patch_drop": 0.5}):
        model = make("aim")
        run = trainer(model, size=8, epochs=2, warmup_epochs=0, activation_gb=budget, **own)
        next(run.steps())
        chosen.append(model.recomputed)
    assert chosen[0] == chosen[1] > chosen[2] == 0


def test_no_patch_is_missing_behind_the_training() -> None:
    model = make()
    list(trainer(model, patch_drop=0.5).steps())
    assert model.view.kept is not None
    assert model.eval().view.kept is None


def test_a_share_of_zero_is_the_training_without() -> None:
    plain, zero = make(), make()
    trainer(plain).run()
    trainer(zero, patch_drop=0.0, patch_drop_by="motion").run()
    assert all(torch.equal(a, weights(zero)[n]) for n, a in weights(plain).items())


def test_parts_of_a_batch_drop_what_the_whole_batch_does() -> None:
    whole = first_gradients(make(), patch_drop=0.5)
    parts = first_gradients(make(), patch_drop=0.5, accumulate=4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-5)
    other = first_gradients(make(), patch_drop=0.5, seed=1)
    assert any(not torch.allclose(other[n], g, rtol=1e-3) for n, g in whole.items())


def test_a_training_that_goes_on_drops_the_same(tmp_path: Any) -> None:
    options = {"epochs": 2, "patch_drop": 0.5, "patch_drop_by": "motion"}
    whole = make()
    trainer(whole, **options).run()
    first = trainer(make(), checkpoints=Checkpoints(tmp_path / "c"), **options)
    for _ in first.steps():
        pass
    first._end_epoch(EpochTiming(0.0, 0.0))
    second = make()
    trainer(second, checkpoints=Checkpoints(tmp_path / "c"), **options).run()
    assert all(torch.equal(a, weights(second)[n]) for n, a in weights(whole).items())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("st_adapter", {"kernel_size": [3, 3, 3]}, "the kernel 3x3x3 goes over neighbouring"),
        ("evl", {"num_layers": 2}, "its decoder reads frozen blocks"),
    ],
)
def test_a_method_that_needs_the_grid_is_refused_before_it_trains(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(VidpipeError, match=rf"train.patch_drop: 0.5, .* {name} .*: {message}"):
        trainer(make(name, **options), patch_drop=0.5)


def test_a_beit_is_refused() -> None:
    model = build_method("linear_probe", tiny_of("beit"), 3, T, METHODS["linear_probe"].Config())
    assert model.whole_grid == "its attention has a bias for each pair of patches"
