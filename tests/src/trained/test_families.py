"""What is done with a trained model works on every family: folders, programs, explanations, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import DEPTH, FAMILIES, GRID, HEADS, size_of, tiny_of
from safetensors.torch import save_file
from torch import Tensor

import vidpipe
from vidpipe.backbones.activation import QuickGELU
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.explain import explain_clip
from vidpipe.export.packaging import inference_model, save_package
from vidpipe.export.parity import Parity, prove_parity, prove_program
from vidpipe.export.programs import open_program, write_program
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import NORMS, macs_by_kind, memory, saved_by_block
from vidpipe.trained.trained_model import TrainedModel

T, CLASSES = 4, ["left", "right", "up"]
every = pytest.mark.parametrize("family", FAMILIES)


def trained_on(family: str, method: str, folder: Path) -> TrainedModel:
    """By the name and a file, as a training has it; no adapter is zero."""
    weights, size = folder / "weights.safetensors", size_of(family)
    save_file(tiny_of(family).state_dict(), weights)
    torch.manual_seed(0)
    own = {"num_classes": len(CLASSES), "num_frames": T, "img_size": size, "weights": weights}
    model = vidpipe.create_model(method, f"tiny_{family}", **own).eval()  # type: ignore[arg-type]
    for name, tensor in model.adapter_state().items():
        tensor += (1.0 if name.startswith("head.") else 0.05) * torch.randn_like(tensor)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    return TrainedModel(model, model.backbone, CLASSES, sampling, TransformConfig(size=size))


def pixels(family: str, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, T, 3, size_of(family), size_of(family))
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(trained: TrainedModel, family: str) -> list[Tensor]:
    return [trained.model.preprocess(frames) for frames in pixels(family, 2)]


@every
def test_an_adapter_and_a_merged_package_open_again(family: str, tmp_path: Path) -> None:
    trained = trained_on(family, "zeroi2v", tmp_path)
    clips = normalised(trained, family)
    vidpipe.save(trained.model, tmp_path / "adapter", classes=CLASSES)
    exported = inference_model(trained.model)
    prove_parity(trained.model, exported, clips, 1e-3)
    save_package(tmp_path / "package", trained, exported, Parity(1, 0.0, 1.0, 1e-4))
    with torch.no_grad():
        expected = torch.cat([trained.model(clip) for clip in clips])
        assert expected.std() > 0.1
        for folder, tolerance in (("adapter", 0), ("package", 1e-4)):
            again = vidpipe.load(tmp_path / folder)
            found = torch.cat([again.model(clip) for clip in clips])
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


PROGRAMS = [
    f"{family} {method} {form}"
    for family in ("map", "swiglu", "dinov3", "eva02", "pe_core", "rope_mixed", "beit")
    for method in ("zeroi2v", "aim")
    for form in ("torch_export", "onnx")
]
QUICK = ("pe_core aim torch_export", "beit zeroi2v torch_export")


@pytest.mark.parametrize(
    "case", [pytest.param(own, marks=[] if own in QUICK else pytest.mark.long) for own in PROGRAMS]
)
def test_programs_compute_the_same(case: str, tmp_path: Path) -> None:
    family, method, form = case.split()
    if form == "onnx":
        pytest.importorskip("onnxscript")
    trained = trained_on(family, method, tmp_path)
    clips = pixels(family)
    with torch.no_grad():
        expected = torch.cat([trained.model(trained.model.preprocess(own)) for own in clips])
    trained.model = inference_model(trained.model)
    path = write_program(tmp_path, trained, form, "fp32", {})
    prove_program(expected, open_program(path), clips, 1e-3, form=form, file=path.name)


@every
@pytest.mark.parametrize("method", ["zeroi2v", "aim"])
def test_an_explanation_has_maps_of_the_grid_and_grad_cam(
    family: str, method: str, tmp_path: Path
) -> None:
    pytest.importorskip("captum")
    trained = trained_on(family, method, tmp_path)
    frames = pixels(family, 1)[0]
    found = explain_clip(trained, frames, grad_cam=True)
    with torch.no_grad():
        expected = trained.model(trained.model.preprocess(frames))[0].softmax(-1)
    torch.testing.assert_close(found.probabilities, expected, atol=1e-6, rtol=1e-6)
    kinds = {view.kind: view for view in found.views}
    assert kinds.keys() == {"spatial", "temporal", "grad_cam"}
    for view in found.views:
        assert view.maps.shape == (T, GRID, GRID)
        assert view.maps.isfinite().all()
    assert kinds["grad_cam"].maps.max() > 0 or kinds["grad_cam"].maps.min() == 0
    assert kinds["spatial"].maps.std() > 0


@every
@pytest.mark.parametrize("method", ["aim", "zeroi2v", "st_adapter"])
def test_memory_and_cost_are_counted_by_block(family: str, method: str) -> None:
    model = build_method(method, tiny_of(family), 3, T, METHODS[method].Config())
    size = size_of(family)
    meta, real = (saved_by_block(model, size, device) for device in ("meta", "cpu"))
    assert len(meta.blocks) == DEPTH
    assert all(kept > given > 0 for kept, given in zip(meta.blocks, meta.inputs, strict=True))
    assert meta.inputs == real.inputs
    assert memory(model, size).activations_per_clip == sum(meta.blocks) + meta.rest
    # CLIP's activation is ours, on every family that has it.
    acts = {type(block.activation).__name__ for block in model.blocks}
    assert (family == "clip") == any(isinstance(b.activation, QuickGELU) for b in model.blocks)
    assert len(acts) == 1
    assert model.blocks[0].num_heads == HEADS


@every
def test_each_norm_of_a_family_counts_five_an_element(family: str) -> None:
    """RMS norms as LayerNorms: none of a block's norms is a class that nothing counts."""
    vit = tiny_of(family)  # all of it trained, as by `full_finetune`
    counted = [m for n, m in vit.named_modules() if isinstance(m, NORMS) and "attn_pool" not in n]
    at_least = 2 * DEPTH * 5 * GRID**2 * 48
    assert len(counted) >= 2 * DEPTH
    assert macs_by_kind(vit, size_of(family), 0)[1] >= at_least
    assert all(p.requires_grad for p in vit.parameters())
