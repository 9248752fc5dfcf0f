"""The package, its programs and the proof that they are the model that was trained."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from project import PROJECT
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny import randomise, tiny_vit
from without import run_without

from pipeline.stages.export import _with_accuracy
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.zoo import Backbone, architecture, load_backbone
from vidpipe.config.messages import explain
from vidpipe.data.config import SamplingConfig, TransformConfig
from vidpipe.data.model_input import to_input
from vidpipe.errors import VidpipeError
from vidpipe.export.config import ExportConfig
from vidpipe.export.model_card import Facts, model_card, weights_licence
from vidpipe.export.packaging import describe, inference_model, save_package
from vidpipe.export.parity import Parity, prove_parity, prove_program
from vidpipe.export.programs import PixelModel, open_program, require, write_program
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.tasks.registry import SINGLE_LABEL
from vidpipe.trained.package import open_model
from vidpipe.trained.trained_model import TrainedModel

T, SIZE = 4, 48
NAME = "vit_still_patch12_48"
CLASSES = ["left", "right", "up"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    vit = architecture(BackboneConfig(name=NAME, weights="none"), SIZE)
    randomise(vit)
    save_file(vit.state_dict(), path)
    return path


def trained_model(weights: Path, name: str, **options: object) -> TrainedModel:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=NAME, weights=str(weights)), SIZE)
    config = METHODS[name].Config.model_validate(options)
    model = build_method(name, backbone.vit, len(CLASSES), T, config)
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    return TrainedModel(model.eval(), backbone, CLASSES, sampling, TransformConfig(size=SIZE))


def tiny_model(name: str) -> TrainedModel:
    """One block, 32 px: tracing takes a second a block. No file holds its weights."""
    vit = tiny_vit(depth=1)
    config = BackboneConfig(name="tiny", weights="none")
    backbone = Backbone(vit, config, "0" * 64, "gelu", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    options = {"evl": {"num_layers": 1}}.get(name, {})
    method = METHODS[name].Config.model_validate(options)
    model = build_method(name, vit, len(CLASSES), T, method)
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn_like(tensor)
    sampling = SamplingConfig(strategy="uniform", num_frames=T)
    return TrainedModel(model.eval(), backbone, CLASSES, sampling, TransformConfig(size=32))


def clips(trained: TrainedModel, count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    size = trained.transform.size
    shape = (count, T, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(trained: TrainedModel, count: int = 3) -> list[torch.Tensor]:
    x = to_input(clips(trained, count), trained.backbone.mean, trained.backbone.std)
    return list(x.split(1))


def logits(trained: TrainedModel, count: int = 5) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([trained.model(x) for x in normalised(trained, count)])


def exported(trained: TrainedModel) -> TrainedModel:
    model = inference_model(trained.model)
    return TrainedModel(
        model, trained.backbone, trained.classes, trained.sampling, trained.transform
    )


def test_a_pixel_model_takes_the_pixels_of_a_clip() -> None:
    trained = tiny_model("aim")
    x = to_input(clips(trained), trained.backbone.mean, trained.backbone.std)
    # Not to the bit: a program has the layout in memory that it is given.
    torch.testing.assert_close(
        PixelModel(trained)(clips(trained)), trained.model(x), rtol=1e-5, atol=1e-6
    )


# -- programs -----------------------------------------------------------------------------------


OFTEN = ("aim", "st_adapter", "zeroi2v", "evl", "side4video")
"""Exported on each run of the tests, as the rest, whose graphs have no other parts, is on long ones."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in OFTEN else pytest.mark.long) for n in METHODS],
)
def test_torch_program_gives_the_trained_logits_for_any_batch(tmp_path: Path, name: str) -> None:
    trained = tiny_model(name)
    served = exported(trained)
    path = write_program(tmp_path, served, "torch_export", "fp32", describe(trained, served.model))
    parity = prove_program(
        logits(trained), open_program(path), clips(trained), 1e-4, file=path.name
    )
    assert parity.top1_agreement == 1
    extra = {"vidpipe.json": ""}
    torch.export.load(path, extra_files=extra)
    about = json.loads(extra["vidpipe.json"])
    assert about["classes"] == CLASSES
    assert about["input"]["shape"] == ["batch", T, 3, 32, 32]


def test_bf16_computes_in_bf16_and_answers_in_fp32(tmp_path: Path) -> None:
    trained = tiny_model("zeroi2v")
    path = write_program(tmp_path, exported(trained), "torch_export", "bf16", {})
    program = open_program(path)
    assert path.name == "model.bf16.pt2"
    assert program(clips(trained)).dtype == torch.float32
    parity = prove_program(logits(trained), program, clips(trained), None)
    assert 1e-4 < parity.max_abs_difference < 0.3
    assert trained.model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["st_adapter", "aim", "zeroi2v"])
def test_onnx_program_gives_the_trained_logits_for_any_batch(tmp_path: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx")
    trained = tiny_model(name)
    served = exported(trained)
    path = write_program(tmp_path, served, "onnx", "fp32", describe(trained, served.model))
    prove_program(logits(trained), open_program(path, 1), clips(trained), 1e-4, file=path.name)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["vidpipe"])["classes"] == CLASSES
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 23)}


@pytest.mark.parametrize("form", ["torch_export", "onnx"])
def test_equal_models_give_equal_bytes_without_a_path_of_this_machine(
    tmp_path: Path, form: str
) -> None:
    pytest.importorskip("onnx")
    written = []
    for folder in ("a", "elsewhere"):
        (tmp_path / folder).mkdir()
        model = exported(tiny_model("linear_probe"))
        path = write_program(tmp_path / folder, model, form, "fp32", {})
        written.append(path.read_bytes())
    assert written[0] == written[1]
    for own in (str(PROJECT), str(tmp_path), torch.__path__[0]):
        assert own.encode() not in written[0]

    path.write_bytes(written[0][:5000])
    with pytest.raises(VidpipeError, match=r"^\S+: not a readable program \(.*\); export again$"):
        open_program(path)
    path.unlink()
    with pytest.raises(VidpipeError, match="no such file"):
        open_program(path)


def test_a_program_that_differs_is_refused(tmp_path: Path) -> None:
    trained = tiny_model("linear_probe")
    expected = logits(trained)
    off = expected + 2e-4
    with pytest.raises(
        VidpipeError, match=r"^export: model.pt2 \(torch_export, fp32\) differs .* by"
    ):
        prove_program(expected, replay(off), clips(trained), 1e-4)
    not_finite = torch.full_like(expected, math.nan)
    with pytest.raises(VidpipeError, match=r"not finite; leave fp16 out of export\.precisions"):
        prove_program(expected, replay(not_finite), clips(trained), None, dtype="fp16")
    swapped = expected.flip(1)
    parity = prove_program(expected, replay(swapped), clips(trained), None, dtype="bf16")
    assert parity.top1_agreement < 1
    views: Any = range(10)
    with pytest.raises(
        VidpipeError, match=r"has top-1 0.8000, the trained model 0.9000; export.max"
    ):
        _with_accuracy(parity, 0.8, 0.9, SINGLE_LABEL, views, ExportConfig(max_top1_loss=0.05))
    judged = _with_accuracy(parity, 0.8, 0.9, SINGLE_LABEL, views, ExportConfig(max_top1_loss=0.2))
    assert (judged.top1, judged.top1_fp32, judged.accuracy_clips) == (0.8, 0.9, 10)


def replay(rows: torch.Tensor):
    """A program that gives these logits, row after row, whatever it is shown."""
    left = list(rows)
    return lambda batch: torch.stack([left.pop(0) for _ in batch])


def test_without_onnx_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    require(("torch_export",))
    with pytest.raises(VidpipeError, match=r"pip install 'vidpipe\[onnx\]'"):
        require(("torch_export", "onnx"))


def test_a_precision_needs_a_format_that_has_it() -> None:
    config = ExportConfig(formats=("torch_export", "onnx"), precisions=("bf16", "int8"))
    assert config.programs() == [
        ("torch_export", "fp32"),
        ("torch_export", "bf16"),
        ("onnx", "fp32"),
        ("onnx", "int8"),
    ]
    with pytest.raises(ValidationError) as refused:
        ExportConfig(precisions=("int8",))
    assert "int8, which is written as onnx; add that to export.formats" in explain(
        refused.value, ExportConfig
    )


# -- which layer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer", "where"),
    [
        ("zeroi2v", "vit.blocks.1.mlp.fc2", r"vit\.blocks\.1\.ls2 \(block 1: its MLP\)"),
        ("lora", "vit.blocks.2.attn.proj", r"vit\.blocks\.2\.ls1 \(block 2: its attention\)"),
        ("zeroi2v", "vit.patch_embed.proj", r"vit\.patch_embed\.norm"),
        ("zeroi2v", "vit.norm", r"vit\.norm"),
        ("zeroi2v", "head", r"head"),
        # Nothing merged: any layer can be named.
        ("aim", "adapters.2.spatial.fc1", r"adapters\.2\.spatial\.fc1 \(block 2\)"),
        ("st_adapter", "vit.blocks.1.mlp.fc2", r"vit\.blocks\.1\.mlp\.fc2 \(block 1\)"),
        ("evl", "decoder.1.attn.q", r"decoder\.1\.attn\.q \(block 1\)"),
    ],
)
def test_a_wrong_export_names_the_first_layer(
    weights: Path, name: str, layer: str, where: str
) -> None:
    trained = trained_model(weights, name, **({"num_layers": 4} if name == "evl" else {}))
    wrong = inference_model(trained.model)
    prove_parity(trained.model, wrong, normalised(trained), 1e-4)
    with torch.no_grad():
        bias = wrong.get_submodule(layer).bias
        bias[: len(bias) // 2 + 1] += 0.3
    with pytest.raises(
        VidpipeError,
        match=rf"exported {name} model differs .*; first at {where}, by [\d.e-]+; nothing",
    ):
        prove_parity(trained.model, wrong, normalised(trained), 1e-4)


def test_a_model_of_nan_is_refused(weights: Path) -> None:
    trained = trained_model(weights, "zeroi2v")
    wrong = inference_model(trained.model)
    with torch.no_grad():
        wrong.temporal_embedding.weight[0, 1, 3] = math.nan
    with pytest.raises(VidpipeError, match=r"by nan in its logits .* first at vit\.norm_pre"):
        prove_parity(trained.model, wrong, normalised(trained), 1e-4)


# -- the package --------------------------------------------------------------------------------


def saved(folder: Path, trained: TrainedModel) -> TrainedModel:
    served = exported(trained)
    parity = prove_parity(trained.model, served.model, normalised(trained), 1e-4)
    save_package(folder, trained, served.model, parity)
    return served


def test_damaged_packages_are_one_line_errors(tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "package"
    saved(folder, trained_model(weights, "zeroi2v"))
    tensors, config = folder / "model.safetensors", folder / "config.json"
    whole, card = tensors.read_bytes(), json.loads(config.read_text())

    def refused(message: str) -> None:
        with pytest.raises(VidpipeError, match=message) as error:
            open_model(folder)
        assert "\n" not in str(error.value)

    tensors.write_bytes(whole[: len(whole) // 2])
    refused("model.safetensors: not a readable safetensors file")
    tensors.write_bytes(b"")
    refused("model.safetensors: not a readable safetensors file")
    tensors.write_bytes(whole)
    state = load_file(tensors)
    save_file({k: v for k, v in state.items() if k != "head.bias"}, tensors)
    refused("model.safetensors: weights do not fit the model; missing keys: head.bias")
    save_file({**state, "head.bias": torch.zeros(7)}, tensors)
    refused("head.bias")
    tensors.unlink()
    refused("model.safetensors: no such file")
    tensors.write_bytes(whole)
    for broken, message in (
        (
            {**card, "version": 99},
            "version 99, expected 'vidpipe-adapter' or 'vidpipe-model' version 1",
        ),
        (
            {**card, "method": "zeroi3v"},
            "not a complete description of a model; method: 'zeroi3v' is no method; nearest is",
        ),
        ({**card, "classes": CLASSES[:2]}, r"head\.(bias|weight)"),
        ({k: v for k, v in card.items() if k != "sampling"}, "not a complete description"),
    ):
        config.write_text(json.dumps(broken))
        refused(message)
    config.write_text(config.read_text()[:100])
    refused("config.json: not valid JSON")


def test_a_package_opens_with_torch_timm_and_pydantic_and_a_program_with_torch_alone(
    tmp_path: Path, weights: Path
) -> None:
    trained = trained_model(weights, "zeroi2v")
    served = saved(tmp_path, trained)
    write_program(tmp_path, served, "torch_export", "fp32", describe(trained, served.model))
    torch.save(clips(trained, 2), tmp_path / "clips.pt")
    begin = f"""
from pathlib import Path
import torch
clips = torch.load({str(tmp_path / "clips.pt")!r}, weights_only=True)
"""
    loader = f"""
from vidpipe.trained.package import load_package
from vidpipe.export.programs import PixelModel
logits = PixelModel(load_package(Path({str(tmp_path)!r})))(clips)
"""
    program = f"logits = torch.export.load({str(tmp_path / 'model.pt2')!r}).module()(clips)"
    orchestration = "ray mlflow dvc typer rich ruamel psutil pipeline"
    media = "decord av simplejpeg fsspec pandas pyarrow matplotlib torchmetrics open_clip PIL.Image"
    models = "vidpipe timm pydantic safetensors torchvision"
    for code, missing in (
        (loader, f"{orchestration} {media.removesuffix(' PIL.Image')}"),
        (program, f"{orchestration} {media} {models}"),
    ):
        done = run_without(missing, begin + code + "\nprint(logits.flatten().tolist())")
        assert done.returncode == 0, done.stderr[-2000:]
        found = torch.tensor(json.loads(done.stdout.splitlines()[-1])).view(2, -1)
        torch.testing.assert_close(found, logits(trained)[:2], atol=1e-4, rtol=1e-4)


# -- the card -----------------------------------------------------------------------------------


def test_the_card_says_what_is_known_and_what_is_not() -> None:
    trained = tiny_model("zeroi2v")
    served = exported(trained)
    parity = Parity(4, 1e-6, 1.0, 1e-4)
    lower = Parity(4, 0.1, 1.0, None, "torch_export", "bf16", "model.bf16.pt2", 0.9, 0.95, 20)
    facts = Facts(
        training={"epoch": 3, "train": {"batch_size": 8, "steps": None, "cache_mb": 9}},
        evaluation={"top1": 0.912, "top1_low": 0.85, "top1_high": 0.96, "top5": 1.0, "clips": 57.0},
        cost={"total": 2e6, "tunable": 1e6, "new_at_inference": 1e4, "gmacs": 1.5},
        clips={"train": 100, "val": 57},
        quarantined={"truncated": 2},
    )
    card = model_card(trained, served.model, [parity, lower], facts)
    for text in (
        "ZeroI2V (Li et al., ECCV 2024)",
        "merged: the adapters are folded",
        f"`{'0' * 64}`",
        "Clips: 100 train, 57 val. Videos left out: 2 truncated.",
        "Classes: left, right, up.",
        "| top-1 | 91.2 % | 85.0 to 96.0 |",
        "| top-5 | 100.0 % | - |",
        "`batch_size: 8`",
        "| `model.bf16.pt2` | torch_export | bf16 | 0.1 | 100.0 % | 90.00 % | -5.00 |",
        "`tiny`: unknown. Check where they were published",
        "It takes exactly 4 frames, in their order.",
    ):
        assert text in card, text
    for text in ("blind to the order", "steps", "cache_mb"):
        assert text not in card, text
    facts = Facts(weights_licence="cc-by-nc-4.0")
    probe = tiny_model("linear_probe")
    card = model_card(probe, exported(probe).model, [parity], facts)
    for text in (
        "blind to the order",
        "Not evaluated.",
        "`cc-by-nc-4.0`, by timm's entry for `tiny`",
    ):
        assert text in card, text


def test_timm_says_the_licence_of_the_weights_it_lists(weights: Path) -> None:
    assert weights_licence(trained_model(weights, "linear_probe")) == "apache-2.0"
    assert weights_licence(tiny_model("linear_probe")) is None
