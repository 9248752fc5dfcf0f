"""The optimizer's groups: what is decayed, and at which rate each part learns."""

from __future__ import annotations

from typing import Any

import pytest
from trainings import make, trainer, weights

from vidpipe.methods.base import VideoModel
from vidpipe.training.optim import trained_parameters


def group_of(model: VideoModel, name: str) -> dict[str, Any]:
    wanted = dict(model.named_parameters())[name]
    return next(g for g in model.parameter_groups() if any(p is wanted for p in g["params"]))


def test_groups_of_full_fine_tuning() -> None:
    model = make("full_finetune", pretrained_lr_scale=0.01, weight_decay=0.1)
    assert group_of(model, "vit.blocks.0.attn.qkv.weight")["lr_scale"] == 0.01
    assert group_of(model, "head.weight")["lr_scale"] == 1
    for name in ("vit.pos_embed", "vit.cls_token", "vit.norm.weight", "vit.blocks.0.mlp.fc1.bias"):
        assert group_of(model, name)["weight_decay"] == 0, name
    assert group_of(model, "head.weight")["weight_decay"] == 0.1
    grouped = [p for g in model.parameter_groups() for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == len(trained_parameters(model))


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("aim", {"vit.norm"}),
        ("zeroi2v", {"vit.norm", "temporal_embedding"}),
        ("lora", {"vit.norm", "temporal_embedding"}),
        ("temporal_heads", {"vit.norm", "temporal_embedding"}),
    ],
)
def test_weight_decay_is_that_of_the_papers_code(name: str, spared: set[str]) -> None:
    model = make(name, weight_decay=0.1)
    for parameter in trained_parameters(model):
        expected = 0.0 if parameter.rpartition(".")[0] in spared else 0.1
        assert group_of(model, parameter)["weight_decay"] == expected, parameter


@pytest.mark.parametrize("name", ["st_adapter", "bitfit", "evl", "attentional_pooling"])
def test_elsewhere_vectors_are_not_decayed(name: str) -> None:
    model = make(name, weight_decay=0.1, **({"num_layers": 2} if name == "evl" else {}))
    for parameter, tensor in trained_parameters(model).items():
        expected = 0.1 if tensor.ndim > 1 else 0.0
        assert group_of(model, parameter)["weight_decay"] == expected, parameter


@pytest.mark.parametrize("name", ["full_finetune", "aim", "st_adapter", "zeroi2v", "lora", "evl"])
def test_layer_decay_falls_from_the_last_block_to_the_first(name: str) -> None:
    options = {"num_layers": 2} if name == "evl" else {}
    model = make(name, layer_decay=0.5, **options)
    scales = {n: model.lr_scale(n) for n in trained_parameters(model)}
    assert scales["head.weight"] == 1
    by_block = {b: {s for n, s in scales.items() if model.block_of(n) == b} for b in range(3)}
    expected = {0: {0.125}, 1: {0.25}, 2: {0.5}}
    if name == "evl":
        expected[0] = set()
    assert by_block == expected
    if name == "full_finetune":
        assert scales["vit.pos_embed"] == scales["vit.patch_embed.proj.weight"] == 0.0625


def test_the_scale_reaches_the_steps() -> None:
    full, scaled = make("full_finetune"), make("full_finetune", pretrained_lr_scale=1e-2)
    start = weights(full)
    for model in (full, scaled):
        trainer(model, steps=1, warmup_epochs=0).run()
    name = "vit.blocks.1.mlp.fc1.weight"
    moved = (weights(full)[name] - start[name]).abs().mean()
    less = (weights(scaled)[name] - start[name]).abs().mean()
    assert less / moved == pytest.approx(1e-2, rel=0.2)
