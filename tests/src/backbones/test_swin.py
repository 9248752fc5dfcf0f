"""A Swin's weights: read, fitted to a size, and found again by what was trained on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from swins import T, clip
from timm.models import SwinTransformer
from tiny import randomise

from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.errors import VidpipeError
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import prove_parity
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.trained.adapter import load_adapter, save_adapter
from vidpipe.trained.package import load_package
from vidpipe.trained.trained_model import TrainedModel

NAME = "swin_s3_tiny_224"  # its blocks and heads are Swin-T's, its windows differ by stage


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    swin = architecture(BackboneConfig(name=NAME, weights="none"), 64)
    randomise(swin)
    path = tmp_path_factory.mktemp("swin") / "swin.safetensors"
    save_file({**swin.state_dict(), "head.fc.weight": torch.zeros(10, 768)}, path)
    return path


def load(path: Path, size: int = 64, name: str = NAME):
    return load_backbone(BackboneConfig(name=name, weights=str(path)), size)


def test_weights_arrive_and_windows_follow_the_size(tiny_weights: Path) -> None:
    backbone = load(tiny_weights)
    assert isinstance(backbone.vit, SwinTransformer)
    assert backbone.activation == "gelu"
    state = backbone.vit.state_dict()
    for name, tensor in load_file(tiny_weights).items():
        assert name == "head.fc.weight" or torch.equal(state[name], tensor), name
    assert not any(p.requires_grad for p in backbone.vit.parameters())
    other = load(tiny_weights, 32).vit
    assert other.layers[3].blocks[0].window_size == (1, 1)
    assert other(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_weights_and_sizes_that_do_not_fit_are_named(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        VidpipeError,
        match="30 px is no multiple of swin_s3_tiny_224's patch of 4 px; nearest that work: 28 and 32",
    ):
        load(tiny_weights, 30)
    state, path = load_file(tiny_weights), tmp_path / "other.safetensors"
    weight = state.pop("layers.1.downsample.reduction.weight")
    save_file({**state, "surprise": weight}, path)
    missing = r"missing keys: layers\.1\.downsample\.reduction\.weight; unexpected keys: surprise"
    with pytest.raises(VidpipeError, match=missing):
        load(path)
    deeper = {"layers.0.blocks.2.attn.relative_position_bias_table": torch.zeros(169, 3)}
    save_file({**load_file(tiny_weights), **deeper}, path)
    with pytest.raises(VidpipeError, match="weights do not fit the model"):
        load(path)


def test_the_original_layout_is_read(tiny_weights: Path, tmp_path: Path) -> None:
    """Microsoft's files merge patches at the end of a stage and hold index buffers."""
    state = {}
    for name, tensor in load_file(tiny_weights).items():
        stage = name.split(".")[1]
        if "downsample" in name:
            name = name.replace(f"layers.{stage}.", f"layers.{int(stage) - 1}.")
        state[name.replace("head.fc.", "head.")] = tensor
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    path = tmp_path / "swin.pth"
    torch.save({"model": state}, path)
    ours, theirs = load(tiny_weights).vit.state_dict(), load(path).vit.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["aim", "zeroi2v"])
def test_checkpoint_and_package_rebuild_the_model(
    tiny_weights: Path, tmp_path: Path, name: str
) -> None:
    backbone = load(tiny_weights)
    model = build_method(name, backbone.vit, 2, T, METHODS[name].Config())
    for parameter in model.adapter_state().values():
        parameter += 0.01 * torch.randn_like(parameter)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    transform = TransformConfig(size=64)
    trained = TrainedModel(model.eval(), backbone, ["left", "right"], sampling, transform)
    save_adapter(tmp_path / "adapter", trained, {})
    loaded = load_adapter(tmp_path / "adapter").model
    video = clip(1, size=64)
    assert torch.equal(loaded(video), model(video))
    exported = inference_model(model)
    parity = prove_parity(model, exported, [video], 1e-3)
    save_package(tmp_path / "package", trained, exported, parity)
    packaged = load_package(tmp_path / "package").model
    assert torch.equal(packaged(video), exported(video))
    # Half precision arithmetic takes the same path, with the biases in fp32.
    with torch.autocast("cpu", torch.bfloat16):
        assert model(video).isfinite().all()
