"""`vidpipe import-checkpoint`: the authors' files become adapter folders with the same logits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from project import SHARED
from safetensors.torch import load_file, save_file
from timm.layers import QuickGELU
from timm.models import VisionTransformer, register_model
from torch import Tensor, nn

import pipeline.cli.app as cli
from vidpipe.interop import build_from_reference
from vidpipe.interop.names import translate
from vidpipe.trained.adapter import load_adapter

GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared is not here")
FILES = ["aim_k400", "st_adapter_both_k311", "st_adapter_pre_attn_k333", "zeroi2v_k400"]
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}


def tiny(options: dict, **defaults: object) -> VisionTransformer:
    # What timm.create_model hands to every entry point, and this one has no use for.
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    vit = VisionTransformer(**{**TINY, **defaults, **options})
    vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return vit


@register_model
def vit_import_test_clip(pretrained: bool = False, **kwargs: object) -> VisionTransformer:
    layers = {"act_layer": QuickGELU, "norm_layer": nn.LayerNorm}
    return tiny(kwargs, pre_norm=True, **layers)


@register_model
def vit_import_test_gelu(pretrained: bool = False, **kwargs: object) -> VisionTransformer:
    return tiny(kwargs, pre_norm=True, norm_layer=nn.LayerNorm)


@register_model
def vit_import_test_deep(pretrained: bool = False, **kwargs: object) -> VisionTransformer:
    return tiny(kwargs, pre_norm=True, act_layer=QuickGELU, norm_layer=nn.LayerNorm, depth=4)


def golden(name: str) -> dict:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def backbone_of(g: dict, path: Path, half: bool = False) -> Path:
    """The frozen part by timm's names. AIM and ZeroI2V train the final norm: here it is another."""
    state, _ = translate(g["state_dict"], g["meta"]["method"])
    state = {k.removeprefix("vit."): v.clone() for k, v in state.items() if k.startswith("vit.")}
    if g["meta"]["method"] != "st_adapter":
        state["norm.weight"] = torch.ones(48)
    save_file({k: v.half() if half else v for k, v in state.items()}, path)
    return path


def trained_only(g: dict, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{k}": v for k, v in state.items() if k in g["trainable"]}


def options_of(g: dict) -> list[str]:
    meta = g["meta"]
    options = ["--num-frames", "4", "--sampling", "uniform"]
    if "adapter_scale" in meta:
        options += ["--adapter-scale", str(meta["adapter_scale"])]
    for key, value in meta.get("stdha", {}).items():
        options += ["--stdha", f"{key}={value}"]
    if meta["method"] == "st_adapter":
        options += ["--size", "32"]
    return options


class Case:
    """A golden file as its authors would have saved it, and the command that imports it."""

    def __init__(self, name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.g = golden(name)
        self.method = self.g["meta"]["method"]
        self.file, self.out = folder / "released.pth", folder / "models" / "adapter"
        self.weights = backbone_of(self.g, folder / "vit.safetensors")
        self.options = options_of(self.g)
        self.capsys = capsys
        state = self.g["state_dict"]
        if self.method == "st_adapter":
            torch.save({"model": trained_only(self.g, state), "next_step": 7}, self.file)
        else:
            torch.save({"state_dict": state, "meta": {"epoch": 30}}, self.file)

    def run(self, *more: str, backbone: str = "vit_import_test_clip") -> str:
        """What the command printed; on refusal, its one line."""
        command = ["vidpipe", "import-checkpoint", str(self.file), "--from", self.method]
        command += ["--backbone", backbone, "--weights", str(self.weights), "--out", str(self.out)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*command, *self.options, *more])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        printed = self.capsys.readouterr()
        if ended.value.code:
            assert not self.out.exists()
            assert printed.err.count("\n") == 1, printed.err
            return printed.err
        return printed.out

    def drop(self, option: str) -> None:
        at = self.options.index(option)
        del self.options[at : at + 2]

    def logits(self) -> Tensor:
        return load_adapter(self.out).model(self.g["input"])


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.set_num_threads(1)
    return lambda name: Case(name, tmp_path, capsys)


@pytest.mark.parametrize("name", FILES)
def test_the_adapter_folder_has_the_checkpoints_logits(name: str, case) -> None:
    c = case(name)
    printed = c.run()
    assert "bottleneck ratio" in printed
    assert "vit_import_test_clip: width 48, 3 blocks, 32 pixels" in printed
    assert ("NOT compared" in printed) == (c.method == "st_adapter")
    expected = build_from_reference(c.g["state_dict"], c.g["meta"])(c.g["input"])
    torch.testing.assert_close(c.logits(), expected, atol=1e-6, rtol=0)
    trained = load_adapter(c.out)
    assert trained.classes == [f"class_{i}" for i in range(7)]
    assert trained.sampling.num_frames == 4
    assert trained.transform.size == 32
    stored = load_file(c.out / "adapter.safetensors")
    assert len(stored) == len(c.g["trainable"])


@pytest.mark.parametrize("kept", ["resblocks.2.adapter_pre_attn", "resblocks.2.", "mixed"])
def test_st_adapter_in_some_blocks_only(kept: str, case) -> None:
    c = case("st_adapter_both_k311")
    mixed = ("resblocks.0.adapter_pre_mlp", "resblocks.2.adapter_pre_attn")
    wanted = mixed if kept == "mixed" else (kept,)
    state = {
        k: v
        for k, v in c.g["state_dict"].items()
        if ".adapter_" not in k or any(w in k for w in wanted)
    }
    torch.save({"model": trained_only(c.g, state)}, c.file)
    c.run()
    meta = {k: v for k, v in c.g["meta"].items() if not k.startswith("adapter_")}
    expected = build_from_reference(state, meta)(c.g["input"])
    torch.testing.assert_close(c.logits(), expected, atol=1e-6, rtol=0)


def test_weights_rounded_to_fp16_are_the_same_weights(case) -> None:
    c = case("aim_k400")
    backbone_of(c.g, c.weights, half=True)
    c.run()
    torch.testing.assert_close(c.logits(), c.g["logits"], atol=2e-2, rtol=0)


def test_another_backbone_is_refused_by_name(case) -> None:
    c = case("aim_k400")
    state = load_file(c.weights)
    state["blocks.1.mlp.fc2.bias"][3] += 0.05
    save_file(state, c.weights)
    error = c.run()
    assert "not the weights" in error
    assert "different: vit.blocks.1.mlp.fc2.bias" in error


def test_another_architecture_is_refused(case) -> None:
    c = case("aim_k400")
    assert "activation gelu" in c.run(backbone="vit_import_test_gelu")
    deep = load_file(c.weights)
    three = dict(deep)
    deep |= {k.replace("s.2.", "s.3."): v.clone() for k, v in deep.items() if "blocks.2." in k}
    save_file(deep, c.weights)
    assert "4 blocks, but" in c.run(backbone="vit_import_test_deep")
    save_file(three, c.weights)
    c.options += ["--heads", "3"]
    assert "--heads 3: backbone vit_import_test_clip has 4 heads a block" in c.run()


def test_st_adapter_needs_clips_activation_too(case) -> None:
    assert "quickgelu" in case("st_adapter_both_k311").run(backbone="vit_import_test_gelu")


def test_a_resized_position_grid_is_refused(case) -> None:
    c = case("zeroi2v_k400")
    assert "grid for 32 pixels" in c.run("--size", "64")
    state = load_file(c.weights)
    state["pos_embed"] = torch.randn(1, 65, 48)
    save_file(state, c.weights)
    assert "position grid" in c.run()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("aim_k400", "--adapter-scale"),
        ("aim_k400", "--sampling"),
        ("zeroi2v_k400", "--adapter-scale"),
        ("zeroi2v_k400", "--stdha"),
        ("st_adapter_both_k311", "--num-frames"),
        ("st_adapter_both_k311", "--size"),
    ],
)
def test_what_tensors_cannot_tell_is_never_guessed(name: str, option: str, case) -> None:
    c = case(name)
    c.drop(option)
    assert f"{option} is missing" in c.run()


def test_options_that_do_not_fit_are_refused(case, tmp_path: Path) -> None:
    c = case("aim_k400")
    assert "trained with 4 frames" in c.run("--num-frames", "8")
    assert "--stdha: aim has no such option" in c.run("--stdha", "shift_div=4")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert "2 names, but the head" in c.run("--classes", str(names))
    assert "expected one of aim" in c.run("--from", "swin")
    assert "do not fit" in c.run("--from", "zeroi2v", "--stdha", "shift_div=4")
    names.write_text("".join(f"action {i}\n" for i in range(7)))
    c.run("--classes", str(names))
    assert load_adapter(c.out).classes[6] == "action 6"


def test_a_merged_model_is_refused_with_the_way_out(case) -> None:
    c = case("zeroi2v_k400")
    torch.save({"state_dict": c.g["merged_state_dict"]}, c.file)
    assert "import the unmerged checkpoint" in c.run()


class Junk:
    ran = False

    def __reduce__(self) -> tuple:
        return (setattr, (Junk, "ran", True))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(case, wrong: float) -> None:
    c = case("aim_k400")
    state = dict(c.g["state_dict"])
    name = next(n for n in state if "Adapter" in n)
    state[name] = state[name].clone().fill_(wrong)
    torch.save({"state_dict": state}, c.file)
    assert "has numbers that are not finite" in c.run()


def test_pickled_code_never_runs(case) -> None:
    c = case("aim_k400")
    torch.save({"state_dict": c.g["state_dict"], "message_hub": Junk()}, c.file)
    error = c.run()
    assert "cannot be read" in error
    assert "pickled objects are never opened" in error
    assert not Junk.ran
    c.file.write_bytes(b"no checkpoint")
    assert "cannot be read" in c.run()
