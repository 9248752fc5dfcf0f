"""`import vidpipe`: the functions that a program uses, by the names of the README."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import itertools
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from project import PROJECT
from safetensors.torch import save_file
from tiny import randomise, tiny_vit
from torch import nn

import vidpipe
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS
from vidpipe.weights import state_sha256

STILL = {"backbone": ARCHITECTURE, "num_classes": 3, "num_frames": 4, "weights": WEIGHTS}


def still(method: str = "st_adapter", **options: object) -> vidpipe.VideoModel:
    return vidpipe.create_model(method, **{**STILL, **options})  # type: ignore[arg-type]


# -- the module itself ----------------------------------------------------------------------


def test_to_import_vidpipe_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import vidpipe; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert imported - sys.stdlib_module_names == {"vidpipe"}


def test_every_name_is_in_help_with_its_docstring() -> None:
    text = pydoc.plain(pydoc.render_doc(vidpipe))
    for name in vidpipe.__all__:
        assert name in dir(vidpipe)
        assert (inspect.getdoc(getattr(vidpipe, name)) or "").splitlines()[0] in text, name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vidpipe' has no attribute 'nosuch'"):
        vidpipe.nosuch  # noqa: B018


@pytest.mark.parametrize("name", sorted(vidpipe.__all__))
def test_a_public_function_is_documented_in_the_same_form(name: str) -> None:
    if inspect.isfunction(function := getattr(vidpipe, name)):
        for heading in ("Args:", "Returns:", "Example:"):
            assert heading in (function.__doc__ or ""), heading


DOCUMENTED = ["create_model", "fit", "list_methods", "list_backbones"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_function_says_what_it_takes_and_its_example_runs(name: str) -> None:
    function = getattr(vidpipe, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}: " in text, f"{name}: {parameter} is not described"
    assert "Returns:" in text
    run_examples(function, name)


@pytest.mark.parametrize("name", ["preprocess", "parameter_groups"])
def test_the_examples_of_a_models_methods_run(name: str) -> None:
    run_examples(getattr(vidpipe.VideoModel, name), name)


def run_examples(thing: object, name: str) -> None:
    globs = vars(importlib.import_module(thing.__module__))
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(globs))
    assert test.examples, f"{name} has no example"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)


def test_the_readme_runs_as_it_is_written(in_folder: Path) -> None:
    """But for the backbone, of which a small one has to do."""
    from vidpipe.video.config import SynthConfig
    from vidpipe.video.rendered import render_clip, write_clip

    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    after = readme.partition("## From Python\n")[2].splitlines()[1:]
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), after)
    code = "\n".join(line.removeprefix("    ") for line in block)
    clip = "vit_base_patch16_clip_quickgelu_224"
    assert code.count("vidpipe.") >= 6
    assert clip in code
    save_file(_stored(), "clip.safetensors")
    config = SynthConfig(duration_s=(8, 8))
    write_clip(Path("clip.mp4"), render_clip(config, "grow", 0), config.fps, config.crf)
    frames = torch.randint(0, 256, (2, 8, 3, 50, 60), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(frames, torch.arange(2))
    classes = [f"class {i}" for i in range(400)]
    names = {"frames": frames[0], "train": data, "val": data, "classes": classes}
    exec(code.replace(clip, ARCHITECTURE), names)
    assert names["logits"].shape == (1, 400)
    assert names["clf"].trained.sampling.stride == 16
    assert len(names["clf"].predict(frames[0])) == 5


def test_what_can_be_merged_is_merged_from_the_front_door(tmp_path: Path) -> None:
    vidpipe.save(randomised(still("zeroi2v")), tmp_path / "out", classes=["a", "b", "c"])
    clf = vidpipe.load(tmp_path / "out", device="cpu")
    frames = torch.randint(0, 256, (4, 3, 50, 60), dtype=torch.uint8)
    (best, *_), (same, *_) = clf.predict(frames), clf.merge().predict(frames)
    assert best.label == same.label
    assert best.probability == pytest.approx(same.probability, abs=1e-4)


def randomised(model: vidpipe.VideoModel) -> vidpipe.VideoModel:
    generator = torch.Generator().manual_seed(1)
    for tensor in model.adapter_state().values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    return model


# -- lists ----------------------------------------------------------------------------------


def test_methods_are_those_of_the_registry() -> None:
    assert vidpipe.list_methods() == list(METHODS)
    assert vidpipe.list_methods("*adapter") == ["st_adapter"]


def test_swins_and_the_embedded_vit_are_listed() -> None:
    """tests/src/backbones/test_every_vit.py walks over all the others."""
    listed = set(vidpipe.list_backbones())
    assert listed.issuperset({ARCHITECTURE, *timm.list_models(module="swin_transformer")})


# -- create_model ---------------------------------------------------------------------------


def test_a_model_knows_its_backbone_and_its_input() -> None:
    model = still(bottleneck_ratio=0.25)
    assert model.name == "st_adapter"
    assert model.config.bottleneck_ratio == 0.25
    assert model.img_size == 48
    assert model.backbone.sha256 == state_sha256(_stored())
    assert still(img_size=60).vit.patch_embed.grid_size == (5, 5)


def _stored() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(WEIGHTS)


def own_vit() -> nn.Module:
    torch.manual_seed(0)
    vit = timm.create_model(ARCHITECTURE, num_classes=7)
    randomise(vit)
    return vit.train()


@pytest.mark.parametrize("method", ["st_adapter", "lora", "zeroi2v", "full_finetune", "evl"])
def test_a_module_is_copied_and_never_changed(method: str) -> None:
    vit = own_vit()
    bits, modules = state_sha256(vit.state_dict()), dict(vit.named_modules())
    types = {name: type(module) for name, module in modules.items()}
    model = vidpipe.create_model(method, vit, num_classes=3, num_frames=4)
    optimizer = torch.optim.SGD(model.parameter_groups(lr=0.1, weight_decay=0.0))
    for _ in range(2):
        model(torch.randn(1, 3, 4, 48, 48)).square().sum().backward()
        optimizer.step()
    assert state_sha256(vit.state_dict()) == bits
    assert dict(vit.named_modules()) == modules
    assert {name: type(module) for name, module in vit.named_modules()} == types
    assert vit.training
    assert vit.blocks[0].training
    assert all(p.requires_grad and p.grad is None for p in vit.parameters())
    assert not {id(p) for p in vit.parameters()} & {id(p) for p in model.parameters()}


def test_a_module_is_the_same_backbone_as_a_file_of_its_weights(tmp_path: Path) -> None:
    vit = own_vit()
    save_file(vit.state_dict(), tmp_path / "own.safetensors")
    for size in (48, 72):
        one = vidpipe.create_model("aim", vit, num_classes=3, num_frames=4, img_size=size)
        two = still("aim", weights=tmp_path / "own.safetensors", img_size=size)
        two.load_adapter_state(one.adapter_state(), "one")
        assert one.backbone.sha256 == two.backbone.sha256
        assert one.backbone.mean == two.backbone.mean
        x = torch.randn(1, 3, 4, size, size)
        assert torch.equal(one.eval()(x), two.eval()(x))


def test_a_module_without_normalisation_says_what_is_assumed() -> None:
    with pytest.warns(UserWarning, match="no pretrained_cfg with mean and std; ImageNet's"):
        model = vidpipe.create_model("aim", tiny_vit(), num_classes=3, num_frames=4)
    assert model.backbone.mean == (0.485, 0.456, 0.406)


def test_without_weights_the_backbone_is_random_and_says_so() -> None:
    with pytest.warns(
        UserWarning, match="no weights were given, so the backbone is random"
    ) as seen:
        model = still(weights=None)
    assert seen[0].filename == __file__
    assert model.backbone.sha256 != still().backbone.sha256
    assert model.backbone.mean == still().backbone.mean


def test_a_tower_of_open_clip_is_a_backbone() -> None:
    with pytest.warns(UserWarning, match="random"):
        model = vidpipe.create_model("aim", "open_clip:ViT-S-32", num_classes=3, num_frames=2)
    assert (model.backbone.config.source, model.img_size) == ("open_clip", 224)
    assert model.backbone.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)


def test_open_clip_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        VidpipeError, match="ViT-S-32 needs the package open_clip_torch, which is not"
    ):
        still(backbone="open_clip:ViT-S-32", weights=None)
    assert not vidpipe.list_backbones("open_clip:*")


def test_a_second_method_is_refused() -> None:
    model = still("aim")
    for given in (model, model.vit, copy.deepcopy(model.vit)):
        with pytest.raises(VidpipeError, match="it has the method aim already"):
            vidpipe.create_model("st_adapter", given, num_classes=3, num_frames=4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "st_adaptor"}, "no such method; nearest is st_adapter"),
        (
            {"backbone": "vit_stil_patch12_48"},
            "no model 'vit_stil_patch12_48'; nearest is vit_still",
        ),
        ({"backbone": "open_clip:ViT-B-15"}, "no model 'ViT-B-15'; nearest is ViT-B-1"),
        ({"backbone": "resnet18", "weights": None}, "resnet18 is no ViT, Eva, BEiT or Swin"),
        ({"backbone": nn.Linear(1, 1), "weights": None}, "is a Linear, not one of timm's ViTs"),
        ({"backbone": 3}, "a int, expected a name of vidpipe.list_backbones"),
        ({"botleneck_ratio": 1}, "botleneck_ratio: unknown key; nearest is bottleneck_ratio"),
        ({"lr": -1}, "st_adapter.lr: Input should be greater than 0, got -1"),
        ({"num_classes": 0}, "num_classes: 0, expected a whole number of at least 1"),
        ({"num_frames": 2.5}, "num_frames: 2.5, expected"),
        ({"img_size": True}, "img_size: True, expected"),
        ({"weights": "nosuch.safetensors"}, "nosuch.safetensors: no such file"),
        ({"weights": "random"}, "its weights were random, which no file holds"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, object], says: str) -> None:
    with pytest.raises(VidpipeError) as error:
        still(**change)  # type: ignore[arg-type]
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert "--" not in str(error.value)


def test_weights_for_a_module_are_refused() -> None:
    with pytest.raises(VidpipeError, match="the backbone is a module, which has its own"):
        still(backbone=own_vit())


# -- what a model does ----------------------------------------------------------------------


def test_a_models_input_is_evaluations_middle_view() -> None:
    from vidpipe.data.model_input import InputForm, crop_views, to_input

    model = still()
    frames = torch.randint(0, 256, (4, 3, 64, 90), dtype=torch.uint8)
    view = crop_views(frames, torch.arange(4)[None].numpy(), InputForm(48), 1)
    expected = to_input(view, model.backbone.mean, model.backbone.std)
    assert torch.equal(model.preprocess(frames), expected)
    both = torch.stack([frames, frames.flip(0)])
    assert torch.equal(model.preprocess(both)[0], expected[0])
    assert model.preprocess(both).shape == (2, 3, 4, 48, 48)


@pytest.mark.parametrize(
    "frames", [torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 8, 3, dtype=torch.uint8)]
)
def test_other_frames_are_refused_by_shape_and_type(frames: torch.Tensor) -> None:
    with pytest.raises(VidpipeError, match=r"expected uint8 \(T, 3, H, W\) or \(B, T, 3, H, W\)"):
        still().preprocess(frames)


def test_our_own_optimizer_takes_the_same_groups() -> None:
    from vidpipe.training.config import TrainConfig
    from vidpipe.training.optim import make_optimizer, set_lr

    config = TrainConfig(epochs=1, batch_size=2, warmup_epochs=0)
    model = still("full_finetune", layer_decay=0.5, lr=0.1)
    ours = make_optimizer(model, config, torch.device("cpu"))
    set_lr(ours, 0.1)
    theirs = torch.optim.AdamW(model.parameter_groups(lr=0.1))
    assert len(ours.param_groups) > 2
    for own, their in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in own["params"]] == [id(p) for p in their["params"]]
        assert (own["lr"], own["weight_decay"]) == (their["lr"], their["weight_decay"])
    changed = model.parameter_groups(lr=1.0, weight_decay=0.5)
    assert {g["weight_decay"] for g in changed} == {0.5, 0.0}
    assert max(g["lr"] for g in changed) == 1.0
