"""`backbone.pool`: the feature is what it says, travels with a trained model, and is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, size_of, tiny_of
from safetensors.torch import save_file
from torch import Tensor, nn

import vidpipe
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture
from vidpipe.config.identity import config_hash
from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel

T = 3


def weights_file(folder: Path, family: str) -> str:
    save_file(tiny_of(family).state_dict(), folder / f"{family}.safetensors")
    return str(folder / f"{family}.safetensors")


def model_of(family: str, weights: str, pool: str, method: str = "linear_probe") -> VideoModel:
    torch.manual_seed(0)
    own = {"num_classes": 3, "num_frames": T, "img_size": size_of(family), "weights": weights}
    return vidpipe.create_model(method, f"tiny_{family}", pool=pool, **own).eval()  # type: ignore[arg-type]


def pictures(family: str) -> Tensor:
    size = size_of(family)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def feature(model: VideoModel, x: Tensor) -> Tensor:
    model.head = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        return model(x[:, :, None].expand(-1, -1, T, -1, -1))


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_feature_is_the_one_that_was_asked_for(family: str, pool: str, tmp_path: Path) -> None:
    whole, x = tiny_of(family), pictures(family)
    weights = weights_file(tmp_path, family)
    method = "st_adapter" if pool == "token" else "linear_probe"
    if pool == "token" and whole.cls_token is None:
        with pytest.raises(VidpipeError, match=f"pool: token for tiny_{family}, but .*set avg"):
            model_of(family, weights, pool, method)
        return
    model = model_of(family, weights, pool, method)
    assert model.view.reads == ("prefix" if pool == "token" else "all")
    with torch.no_grad():
        tokens = whole.forward_features(x)  # normed, or not where `fc_norm` follows
        prefix = whole.num_prefix_tokens
        pooled = tokens[:, 0] if pool == "token" else tokens[:, prefix:].mean(1)
        expected = whole.fc_norm(pooled)
        zoo = whole.forward_head(tokens, pre_logits=True)
    found = feature(model, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if whole.global_pool != pool:
        assert (found - zoo).norm() > 0.05 * zoo.norm()
    assert not [name for name, _ in model.vit.named_parameters() if name.startswith("attn_pool")]


@pytest.mark.parametrize(
    ("name", "pool", "message"),
    [
        ("swin_tiny_patch4_window7_224", "token", "a Swin has no class token; leave it out"),
        ("deit_tiny_distilled_patch16_224", "avg", "made of two tokens, class and distillation"),
        ("open_clip:ViT-B-16-SigLIP", "token", "has no class token; set avg, or leave it out"),
    ],
)
def test_what_a_model_cannot_pool_is_refused(name: str, pool: str, message: str) -> None:
    config = BackboneConfig.of(name, "none", pool)  # type: ignore[arg-type]
    expected = pytest.raises(VidpipeError, match=f"^backbone.pool: {pool} for .*{message}")
    with expected, torch.device("meta"):
        architecture(config, 224)


def test_a_wrong_word_is_refused() -> None:
    with pytest.raises(VidpipeError, match=r"^pool: 'mean', expected one of zoo, token, avg$"):
        model_of("dinov3", "none", "mean")


@pytest.mark.parametrize(("family", "pool"), [("dinov3", "token"), ("map", "avg")])
@pytest.mark.parametrize("given", [True, False], ids=["a module of one's own", "a file"])
def test_a_trained_model_keeps_its_pooling(
    family: str, pool: str, given: bool, tmp_path: Path
) -> None:
    """A module's weights travel with the adapter: those that it uses."""
    weights = weights_file(tmp_path, family)
    model = model_of(family, weights, pool, "aim")
    if given:
        whole = tiny_of(family)
        whole.pretrained_cfg = {**whole.pretrained_cfg, "architecture": f"tiny_{family}"}
        model = vidpipe.create_model("aim", whole, pool=pool, num_classes=3, num_frames=T).eval()  # type: ignore[arg-type]
    vidpipe.save(model, tmp_path / "out", classes=["a", "b", "c"])
    assert json.loads((tmp_path / "out/config.json").read_text())["backbone"]["pool"] == pool
    clip = pictures(family)[:, :, None].expand(-1, -1, T, -1, -1)
    again = vidpipe.load(tmp_path / "out").model
    with torch.no_grad():
        torch.testing.assert_close(again(clip), model(clip), atol=0, rtol=0)
        other = model_of(family, weights, "zoo", "aim")
        other.load_state_dict(model.state_dict(), strict=False)
        assert (other(clip) - model(clip)).abs().max() > 1e-4


def test_by_default_identities_and_cards_are_as_they_were(tmp_path: Path) -> None:
    config = BackboneConfig(name="a", weights="b")
    assert config_hash(config) == config_hash({"source": "timm", "name": "a"})
    assert config_hash(config) != config_hash(config.model_copy(update={"pool": "token"}))
    model = model_of("dinov3", weights_file(tmp_path, "dinov3"), "zoo")
    vidpipe.save(model, tmp_path / "out", classes=["a", "b", "c"])
    assert "pool" not in json.loads((tmp_path / "out/config.json").read_text())["backbone"]
