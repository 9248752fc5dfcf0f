"""Zoo models become the internal ViT with equal features; weights that do not fit are refused."""

from __future__ import annotations

from functools import partial
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
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.openclip import tower_to_timm
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
    with pytest.raises(VidpipeError, match="resnet18 is not a plain ViT"):
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


def tower(**changes: object) -> torch.nn.Module:
    from open_clip.transformer import LayerNorm, QuickGELU, VisionTransformer

    options: dict = {
        **{"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 4},
        **{"mlp_ratio": 4.0, "output_dim": 32, "act_layer": QuickGELU, "norm_layer": LayerNorm},
        **changes,
    }
    torch.manual_seed(0)
    module = VisionTransformer(**options)
    randomise(module)
    return module.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act_layer": torch.nn.GELU},
        {"ls_init_value": 0.3},
        {"no_ln_pre": True},
        {"patch_size": 16, "heads": 8, "mlp_ratio": 2.0},
        {"act_layer": partial(torch.nn.GELU, approximate="tanh")},
        {"pool_type": "avg"},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"final_ln_after_pool": True},
    ],
    ids=[
        *("quickgelu", "gelu", "layerscale", "no_pre_norm", "sizes", "tanh"),
        *("mean_of_normed", "norm_of_mean", "norm_of_class_token"),
    ],
)
def test_an_open_clip_tower_keeps_its_features(options: dict) -> None:
    clip = tower(**options)
    vit, state = tower_to_timm(clip, "test", 32)
    fit_state(vit, state, "test")
    clip.proj = None
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit.eval()(x), clip(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attentional_pool": True}, "attention pooling"),
        ({"pool_type": "none"}, "'none' pooling"),
        ({"qk_norm": True}, "CustomResidualAttentionBlock blocks"),
    ],
)
def test_towers_that_cannot_be_adapted_are_refused(options: dict, message: str) -> None:
    with pytest.raises(VidpipeError, match=f"open_clip test has {message}"):
        tower_to_timm(tower(**options), "test", 32)


def test_open_clip_by_name_from_a_local_file(tmp_path: Path) -> None:
    import open_clip

    model = open_clip.create_model("ViT-B-32-quickgelu")
    path = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    config = BackboneConfig(source="open_clip", name="ViT-B-32-quickgelu", weights=str(path))
    backbone = load_backbone(config, 224)
    assert backbone.activation == "quickgelu"
    model.visual.proj = None
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(backbone.vit(x), model.visual.eval()(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(VidpipeError, match="nearest is ViT-B-32"):
        load_backbone(config.model_copy(update={"name": "ViT-B-33"}), 224)


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
    assert all(type(block.mlp.act) is QuickGELU for block in model.blocks)
    assert activation_of(vit) == "quickgelu"
