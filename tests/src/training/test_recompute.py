"""Recomputation: the same gradients from less memory, in as few blocks as the budget asks for."""

from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
from moving_clips import SIZE, T
from tiny import randomise
from trainings import CPU, first_gradients, make, settings

from vidpipe.methods.registry import METHODS
from vidpipe.profile import memory, saved_by_block
from vidpipe.training.recompute import choose_recomputed


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"zero_shot"}))
def test_recomputed_blocks_give_the_same_gradients(name: str) -> None:
    options = {"num_layers": 2} if name == "evl" else {}
    plain, again = make(name, **options), make(name, **options)
    expected = first_gradients(plain)
    found = first_gradients(again, activation_gb=0)
    assert again.recomputed == len(again.blocks)
    assert set(found) == set(expected)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


def test_recomputed_dropout_is_the_same_dropout() -> None:
    options = {"drop_path": 0.5, "head_dropout": 0.3}
    expected = first_gradients(make("aim", **options))
    found = first_gradients(make("aim", **options), activation_gb=0)
    plain = first_gradients(make("aim"))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not all(torch.equal(plain[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("st_adapter", {}), ("aim", {}), ("zeroi2v", {}), ("zeroi2v", {"adapter_dropout": 0.3})],
)
def test_adapters_that_run_again_give_the_same_gradients(name: str, options: dict) -> None:
    plain = make(name, **options)
    plain.checkpointed = lambda function, *inputs: function(*inputs)  # type: ignore[method-assign]
    expected = first_gradients(plain)
    found = first_gradients(make(name, **options))
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=1e-7, rtol=1e-5)


def test_what_a_block_of_vit_b_keeps() -> None:
    """MiB at 8 frames of 224 pixels: attention 18.5 and GELU 18.5 of a frozen block, two norms 4.6 each,
    and of the adapters only what cannot be had again at little cost. Of 4 frames it is half."""
    kinds = ("vit_base_patch16_224", "vit_base_patch16_clip_quickgelu_224")
    limits = (("st_adapter", 46.3), ("zeroi2v", 70), ("aim", 81))
    for kind, (name, limit) in itertools.product(kinds, limits):
        vit = timm.create_model(kind, num_classes=0, depth=3)
        model = METHODS[name](vit, 5, 4, METHODS[name].Config())
        found = 2 * saved_by_block(model, 224, "cpu").blocks[1] / 2**20
        assert limit - 3 < found < limit


def test_recomputation_keeps_the_blocks_inputs_only() -> None:
    model = make("aim")

    def kept(recomputed: int) -> int:
        model.recomputed, total, seen = recomputed, 0, set()
        known = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in known | seen:
                total += tensor.untyped_storage().nbytes()
                seen.add(pointer)
                alive.append(tensor)
            return tensor

        alive: list[torch.Tensor] = []

        def checkpointed(function, *inputs: torch.Tensor):  # type: ignore[no-untyped-def]
            # torch.utils.checkpoint holds its inputs itself, where no hook sees them.
            held = recomputed == 0 or not torch.is_grad_enabled()
            for tensor in inputs if held else ():
                pack(tensor)
            return own(function, *inputs)

        own = type(model).checkpointed.__get__(model)
        model.checkpointed = checkpointed  # type: ignore[method-assign]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            alive.append(model.train()(torch.zeros(1, 3, T, SIZE, SIZE)))
        return total

    saved = saved_by_block(model, SIZE)
    whole, less = kept(0), kept(2)
    assert whole == pytest.approx(saved.rest + sum(saved.blocks), rel=0.1)
    assert whole - less > 0.8 * sum(saved.blocks[:2]) - sum(saved.inputs[:2])
    assert memory(model, SIZE).activations_per_clip == saved.rest + sum(saved.blocks)


def test_the_budget_chooses_as_few_blocks_as_it_can() -> None:
    model = make("aim")
    saved = saved_by_block(model, SIZE)
    assert len(set(saved.blocks)) <= 2  # equal but for what the first one shares
    whole = 4 * (saved.rest + sum(saved.blocks)) / 2**30

    def chosen(gb: float | None) -> int:
        return choose_recomputed(model, SIZE, 4, settings(activation_gb=gb), CPU)

    assert chosen(None) == 0
    assert chosen(whole) == 0
    assert chosen(0) == 3
    assert chosen(1e-9) == 3
    counts = [chosen(whole * share) for share in (1.01, 0.8, 0.6, 0.4, 0.2)]
    assert counts == sorted(counts)
    assert 0 < counts[1] < 3 or 0 < counts[2] < 3


def test_models_copied_for_counting_do_not_recompute_the_original() -> None:
    model = make("aim")
    model.recomputed = 3
    saved = saved_by_block(model, SIZE)
    assert sum(saved.blocks) > sum(saved.inputs)
    assert model.recomputed == 3
    randomise(copy.deepcopy(model))
