"""open_clip's image towers: each has its own feature, or is refused by name; files of theirs load."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from small_clips import CARDS, saved_clip, small_clips
from tiny import randomise
from torch import nn

from pipeline.tools.fetch_weights import fetch
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.listing import list_backbones
from vidpipe.backbones.openclip import create_tower, normalisation, tower_refusal, tower_to_timm
from vidpipe.backbones.zoo import architecture, load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.methods.registry import METHODS, SWIN_METHODS, build_method

T = 2
OWN_SMALL = {"image_size": 32, "width": 64, "layers": 2, "patch_size": 8, "head_width": 32}
"""Of open_clip's own ViT."""
TRUNK_SMALL: dict[str, dict[str, Any]] = {
    "vit": {"depth": 2, "embed_dim": 48, "num_heads": 4},
    "mci": {"depth": 2},  # its stem makes tokens of the full width
    "eva": {"depth": 2, "embed_dim": 48, "num_heads": 4},
    "vitamin": {"depth": 2},
    "swin": {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
}


def small_tower(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The tower of `name` as open_clip makes it, shallow and narrow."""
    card = open_clip.get_model_config(name)
    vision = dict(card["vision_cfg"])
    if "timm_model_name" in vision:
        trunk = vision["timm_model_name"]
        kinds = ("fastvit", "mci", "vitamin", "eva", "pe_", "swin", "convnext", "vit")
        kind = next((kind for kind in kinds if kind in trunk), "")
        options = dict(TRUNK_SMALL.get("eva" if kind == "pe_" else kind, {}))
        if kind in ("vit", "eva", "pe_"):
            options["img_size"] = 4 * int(trunk.partition("patch")[2][:2])
        create = timm.create_model
        with monkeypatch.context() as patched:
            patched.setattr(
                open_clip.timm_model.timm,
                "create_model",
                lambda *args, **kwargs: create(*args, **{**kwargs, **options}),
            )
            return _build_vision_tower(32, vision, False)
    if isinstance(vision["layers"], int):
        vision |= OWN_SMALL
        if "attn_pooler_heads" in vision:
            vision["attn_pooler_heads"] = 2
    return _build_vision_tower(32, vision, card.get("quick_gelu", False))


def projected(tower: Any, feature: torch.Tensor) -> torch.Tensor:
    """What the tower itself makes of its feature."""
    if not hasattr(tower, "trunk"):
        return feature if tower.proj is None else feature @ tower.proj
    classifier = getattr(tower.trunk.head, "fc", tower.trunk.head)  # a Swin's pools before
    return tower.head(classifier(feature))


def structure(name: str, tower: nn.Module) -> str:
    """Names that differ in size alone are one case."""
    card = open_clip.get_model_config(name)["vision_cfg"]
    sizes = ("image_size", *OWN_SMALL)
    if "timm_model_name" not in card:
        return f"{[(k, v) for k, v in card.items() if k not in sizes]} {tower.transformer}"
    trunk = tower.trunk
    return f"{card['timm_pool']} {card['timm_proj']} {trunk}"


@pytest.mark.filterwarnings("ignore")
def test_every_tower_has_its_own_feature_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All names: which load is what the list says, and the feature of a clip of equal frames is the
    tower's own before its projection: projected by the tower, it is the tower's output."""
    listed = set(list_backbones("open_clip:*"))
    seen: set[str] = set()
    verdicts: Counter[str] = Counter()
    worst = 0.0
    for name in open_clip.list_models():
        with torch.device("meta"):
            tower = small_tower(name, monkeypatch)
        reason = tower_refusal(tower)
        kind = type(getattr(tower, "trunk", tower)).__name__
        verdicts[f"{kind}: {reason or 'loads'}"] += 1
        assert (reason is None) == (f"open_clip:{name}" in listed), (name, reason)
        if reason is not None:
            with pytest.raises(VidpipeError, match=f"open_clip {name} .*; nearest that works is "):
                tower_to_timm(tower, name, 224)
            continue
        if (own := structure(name, tower)) in seen:
            continue
        seen.add(own)
        tower = small_tower(name, monkeypatch).eval()
        randomise(tower)
        trunk = getattr(tower, "trunk", None)
        size = 32 if trunk is None else trunk.patch_embed.img_size[0]
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        tower.output_tokens = False  # CoCa's
        with torch.no_grad():
            expected = tower(x)
            vit, state = tower_to_timm(copy.deepcopy(tower), name, size)
            fit_state(vit, state, name)
            for method in ("linear_probe", "st_adapter"):
                if kind == "SwinTransformer" and method not in SWIN_METHODS:
                    continue
                model = build_method(method, copy.deepcopy(vit), 3, T, METHODS[method].Config())
                model.head = nn.Identity()
                feature = model.eval()(x[:, :, None].expand(-1, -1, T, -1, -1))
                found = projected(tower, feature)
                error = float((found - expected).norm() / expected.norm())
                assert error < 1e-5, (name, method, error)
                worst = max(worst, error)
    print(*(f"{count:4} {verdict}" for verdict, count in verdicts.most_common()), sep="\n")
    print(f"{len(seen)} structures computed, worst error {worst:.1e}")
    assert len(seen) > 15
    assert sum(verdicts.values()) == len(open_clip.list_models())


@pytest.mark.long
def test_at_full_size_the_verdict_is_the_same() -> None:
    listed = set(list_backbones("open_clip:*"))
    for name in open_clip.list_models():
        with torch.device("meta"):
            tower = create_tower(BackboneConfig(source="open_clip", name=name, weights=""), None)
        assert (tower_refusal(tower) is None) == (f"open_clip:{name}" in listed), name


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


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the whole small models of `small_clips`, NAME.safetensors, which open_clip knows."""
    folder = tmp_path_factory.mktemp("clips")
    with small_clips(folder):
        for name in CARDS:
            saved_clip(name, folder / f"{name}.safetensors")
        yield folder


def of(name: str, weights: Path | str) -> BackboneConfig:
    return BackboneConfig(source="open_clip", name=name, weights=str(weights))


@pytest.mark.parametrize("name", CARDS)
def test_a_saved_model_loads_by_name_whole_or_without_its_text_half(
    clips: Path, tmp_path: Path, name: str
) -> None:
    size = CARDS[name]["vision_cfg"]["image_size"]
    whole = load_file(clips / f"{name}.safetensors")
    model = open_clip.create_model(name).eval()
    model.load_state_dict(whole)
    tower = {n.removeprefix("visual."): t for n, t in whole.items() if n.startswith("visual.")}
    files = {
        "whole": whole,
        "parallel": {f"module.{n}": t for n, t in whole.items()},
        "image half": {f"visual.{n}": t for n, t in tower.items()},
        "tower": tower,
    }
    hashes = set()
    x = torch.randn(1, 3, size, size)
    for state in files.values():
        save_file(state, tmp_path / "w.safetensors")
        backbone = load_backbone(of(name, tmp_path / "w.safetensors"), size)
        hashes.add(backbone.sha256)
        feature = backbone.vit.forward_head(backbone.vit.forward_features(x), pre_logits=True)
        expected = model.encode_image(x)
        torch.testing.assert_close(projected(model.visual, feature), expected, atol=1e-5, rtol=1e-5)
    assert len(hashes) == 1
    assert load_backbone(of(name, clips / f"{name}.safetensors"), size + 16).sha256 in hashes


def test_what_lies_in_the_file_of_another_family_is_said(clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    others = {
        "a ResNet": ("resnet18", {}),
        "an Eva": ("eva02_tiny_patch14_224", {"depth": 1}),
        "a Swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1)}),
    }
    for kind, (name, options) in others.items():
        save_file(timm.create_model(name, **options).state_dict(), file)
        message = f"{file}: .* not fit the model; they are those of {kind}, and .* is a plain ViT"
        for config, size in ((of("small-clip", file), 48), (of("small-trunk", file), 160)):
            with pytest.raises(VidpipeError, match=message):
                load_backbone(config, size)
        with pytest.raises(VidpipeError, match=message):
            load_backbone(BackboneConfig(name="test_vit", weights=str(file)), 160)
    text = {
        n: t for n, t in load_file(clips / "small-trunk.safetensors").items() if n[:4] == "text"
    }
    save_file(text, file)
    with pytest.raises(
        VidpipeError, match="those of a text tower, and the backbone is a plain ViT"
    ):
        load_backbone(of("small-trunk", file), 160)
    vit = timm.create_model("test_vit", patch_size=8, img_size=160)
    save_file(vit.state_dict(), file)
    with pytest.raises(VidpipeError, match=r"for patches of 8 x 8 pixels, and .* have 16 x 16"):
        load_backbone(BackboneConfig(name="test_vit", weights=str(file)), 160)
    with pytest.raises(VidpipeError, match="missing keys: "):  # of its family, of another width
        load_backbone(of("ViT-S-16", clips / "small-clip.safetensors"), 224)


def test_a_wrong_name_tag_or_activation_is_one_line(clips: Path, tmp_path: Path) -> None:
    for name, weights, message in (
        ("ViT-B-33", "hub:openai", "open_clip has no model 'ViT-B-33'; nearest is ViT-B-32"),
        ("ViT-B-16", "hub:openia", "open_clip needs a tag, hub:<one of .*openai"),
        ("ViT-B-16-SigLIP", "hub", "open_clip needs a tag, hub:<one of .*webli"),
        (
            "ViT-B-16",
            "hub:openai",
            r"hub:openai is for activation quickgelu, but .* ViT-B-16 has gelu; .*-quickgelu",
        ),
        ("ViT-B-16-quickgelu", "hub:nosuch", "needs a tag"),
        ("roberta-ViT-B-32", "hub:laion2b_s12b_b32k", "text tower of Hugging Face"),
    ):
        with pytest.raises(VidpipeError, match=message):
            load_backbone(of(name, weights), 224)
    state = load_file(clips / "small-clip.safetensors")
    save_file(state, tmp_path / "w.safetensors", metadata={"activation": "quickgelu"})
    with pytest.raises(
        VidpipeError, match=r"is for activation quickgelu, but .* small-clip has gelu"
    ):
        load_backbone(of("small-clip", tmp_path / "w.safetensors"), 48)


def test_weights_of_a_tag_are_fetched_whole(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"file": str(clips / "small-trunk.safetensors"), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-trunk", {"mine": card})
    from_tag = load_backbone(of("small-trunk", "hub:mine"), 160)
    assert (from_tag.mean, from_tag.std) == ((0.5,) * 3, (0.25,) * 3)
    line = fetch("open_clip", "small-trunk", "mine", tmp_path / "fetched.safetensors")
    monkeypatch.undo()
    backbone = load_backbone(of("small-trunk", tmp_path / "fetched.safetensors"), 160)
    assert (backbone.sha256, backbone.mean, backbone.std) == (
        from_tag.sha256,
        from_tag.mean,
        from_tag.std,
    )
    assert line.endswith(f"at 160 px, sha256 {backbone.sha256[:12]}")
    fetched = load_file(tmp_path / "fetched.safetensors")
    assert fetched.keys() == load_file(clips / "small-trunk.safetensors").keys()
    with pytest.raises(VidpipeError, match=r"is for architecture small-trunk, but .* small-clip"):
        load_backbone(of("small-clip", tmp_path / "fetched.safetensors"), 48)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ViT-B-16",
            "8 px is no multiple of open_clip ViT-B-16's patch of 16 px; nearest that work: 16",
        ),
        ("ViT-B-16-SigLIP", "8 px is no multiple of open_clip ViT-B-16-SigLIP's patch of 16 px"),
        ("MobileCLIP-B", "8 px is no multiple of open_clip MobileCLIP-B's patch of 16 px"),
    ],
)
def test_a_size_that_leaves_no_patch_is_one_line(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(VidpipeError, match=message):
        architecture(of(name, "none"), 8)


def test_mean_and_std_are_the_weights_own(clips: Path, tmp_path: Path) -> None:
    openai = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    half = (0.5,) * 3, (0.5,) * 3
    assert normalisation("ViT-B-16", "openai", {}) == openai
    assert normalisation("ViT-L-14", "laion2b_s32b_b82k", {}) == half
    assert normalisation("ViT-B-16-SigLIP2", "webli", {}) == half
    # A local file of a name whose weights agree.
    assert normalisation("ViT-B-16-SigLIP2", None, {}) == half
    assert normalisation("MobileCLIP2-B", None, {}) == ((0.0,) * 3, (1.0,) * 3)
    assert normalisation("ViT-B-16", None, {}) == openai
    assert normalisation("small-clip", None, {}) == openai
    with pytest.warns(UserWarning, match="laion2b_s32b_b82k expect another mean and std"):
        assert normalisation("ViT-L-14", None, {}) == openai
    state = load_file(clips / "small-clip.safetensors")
    header = {"mean": "0.1,0.2,0.3", "std": "1,1,2"}
    save_file(state, tmp_path / "w.safetensors", metadata=header)
    found = load_backbone(of("small-clip", tmp_path / "w.safetensors"), 48)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    with pytest.raises(VidpipeError, match="mean and std in the file's header are no numbers"):
        normalisation("small-clip", None, {**header, "std": "a"})
