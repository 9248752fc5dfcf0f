"""Zoo models become the internal ViT with equal features; weights that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from project import PROJECT, SHARED
from safetensors.torch import load_file, save_file
from tiny import randomise, tiny_vit

from vidpipe.backbones.activation import QuickGELU
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import activation_of, architecture, load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.params import load_params

DINO = SHARED / "weights" / "vit_small_patch14_dinov2.safetensors"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    vit = architecture(BackboneConfig(name="vit_tiny_patch16_224", weights="none"), 32)
    randomise(vit)
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return path


def load(path: Path, name: str = "vit_tiny_patch16_224", size: int = 32):
    return load_backbone(BackboneConfig(name=name, weights=str(path)), size)


def test_weights_arrive(weights: Path) -> None:
    vit = load(weights).vit
    for name, tensor in load_file(weights).items():
        assert torch.equal(vit.state_dict()[name], tensor), name
    assert not any(p.requires_grad for p in vit.parameters())


def test_torch_files_are_read_without_pickled_code(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": load_file(weights)}, path)
    assert load(path).sha256 == load(weights).sha256
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(VidpipeError, match="cannot be read"):
        load(path)
    assert not Evil.ran


class Evil:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Evil, "ran", True))


def test_the_position_grid_is_resized(weights: Path) -> None:
    assert load(weights, size=48).vit.pos_embed.shape == (1, 10, 192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.0.attn.qkv.weight"), "missing keys: blocks.0.attn.qkv.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected keys: extra"),
        (
            lambda s: s.update({"norm.bias": torch.zeros(3)}),
            r"norm.bias is \(3,\), expected \(192,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: Path, change, message: str) -> None:
    state = load_file(weights)
    change(state)
    save_file(state, weights)
    with pytest.raises(VidpipeError, match=message):
        load(weights)


def test_other_mistakes_are_one_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(VidpipeError, match="no such file"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(VidpipeError, match="nearest is vit_tiny_patch16_224"):
        load(weights, "vit_tiny_patch16_225")
    with pytest.raises(VidpipeError, match="resnet18 is no ViT, Eva, BEiT or Swin"):
        load(weights, "resnet18")
    save_file(load_file(weights), weights, metadata={"activation": "quickgelu"})
    with pytest.raises(VidpipeError, match=r"is for activation quickgelu, but .* has gelu"):
        load(weights)
    save_file(load_file(weights), weights, metadata={"architecture": "vit_other"})
    with pytest.raises(VidpipeError, match="is for architecture vit_other"):
        load(weights)
    weights.write_bytes(b"nonsense")
    with pytest.raises(VidpipeError, match="cannot be read"):
        load(weights)


def test_the_embedded_vit_fits_the_shipped_params() -> None:
    params = load_params(PROJECT / "params.yaml")
    config = params.backbone.model_copy(update={"weights": str(PROJECT / params.backbone.weights)})
    backbone = load_backbone(config, params.transform.size)
    assert sum(p.numel() for p in backbone.vit.parameters()) < 2e6


@pytest.mark.skipif(not DINO.is_file(), reason="../shared is not here")
def test_real_dinov2_weights_at_another_size() -> None:
    backbone = load(DINO, "vit_small_patch14_dinov2", 112)
    assert backbone.vit.pos_embed.shape == (1, 65, 384)
    assert backbone.mean == (0.485, 0.456, 0.406)
    features = backbone.vit(torch.randn(2, 3, 112, 112))
    assert features.std() > 0.5


@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_our_quick_gelu_is_timms_to_the_bit_and_keeps_its_input_only(
    seed: int, dtype: torch.dtype
) -> None:
    x = (8 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))).to(dtype)
    expected = timm.layers.QuickGELU()(x)
    assert torch.equal(QuickGELU()(x), expected)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        tracked = x.clone().requires_grad_()
        found = QuickGELU()(tracked)
    assert torch.equal(found, expected)
    assert len(kept) == 1
    assert kept[0].data_ptr() == tracked.data_ptr()
    double = x.double().requires_grad_()
    torch.autograd.gradcheck(QuickGELU(), (double,))
    timm.layers.QuickGELU()(double).sum().backward()
    found.sum().backward()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(tracked.grad.double(), double.grad, atol=tolerance, rtol=tolerance)


def test_a_video_model_takes_it_and_still_says_quickgelu() -> None:
    vit = tiny_vit(act_layer=timm.layers.QuickGELU)
    model = build_method("st_adapter", vit, 3, 4, METHODS["st_adapter"].Config())
    assert all(type(block.activation) is QuickGELU for block in model.blocks)
    assert activation_of(vit) == "quickgelu"
