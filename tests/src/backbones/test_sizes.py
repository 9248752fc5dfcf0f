"""Inputs of any size: a model that was fitted to a grid has timm's own feature there, square or not."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from small_models import backbone_file
from swins import tiny_swin
from timm.models import Eva, SwinTransformer, VisionTransformer
from tiny import randomise, tiny_vit
from torch import Tensor, nn

import vidpipe
from vidpipe.backbones.config import BackboneConfig
from vidpipe.backbones.fit import fit_state
from vidpipe.backbones.openclip import tower_to_timm
from vidpipe.backbones.still import ARCHITECTURE, WEIGHTS
from vidpipe.backbones.zoo import architecture, copied_backbone, load_backbone
from vidpipe.errors import VidpipeError
from vidpipe.image_size import Size, size_of
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import gmacs, macs_by_kind

STILL = BackboneConfig(name=ARCHITECTURE, weights=str(WEIGHTS))
T = 2
PATCHES = st.integers(2, 9)


def resized_grid(table: Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, prefix + N, D) for another grid, bicubic."""
    head, grid = table[:, :prefix], table[:, prefix:]
    grid = grid.unflatten(1, old).permute(0, 3, 1, 2)
    if old != new:
        grid = F.interpolate(grid, new, mode="bicubic")
    return torch.cat([head, grid.flatten(2).transpose(1, 2)], 1)


def picture(rows: int, columns: int) -> Tensor:
    return torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))


def clip_feature(vit: nn.Module, x: Tensor, method: str = "linear_probe") -> Tensor:
    """Of a clip of equal frames, by a method that starts as the image model."""
    model = build_method(method, copy.deepcopy(vit), 3, T, METHODS[method].Config())
    model.head = nn.Identity()
    with torch.no_grad():
        return model.eval()(x[:, :, None].expand(-1, -1, T, -1, -1))


def own_feature(vit: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return vit.forward_head(vit.forward_features(x), pre_logits=True)


@settings(max_examples=12, deadline=None)
@given(PATCHES, PATCHES)
def test_a_plain_vit_of_a_file(rows: int, columns: int) -> None:
    size = 12 * rows, 12 * columns
    vit = load_backbone(STILL, size_of(*size)).vit
    state = {k: v.float() for k, v in load_file(WEIGHTS).items()}
    state["pos_embed"] = resized_grid(state["pos_embed"], 1, (4, 4), (rows, columns))
    expected = timm.create_model(ARCHITECTURE, num_classes=0, img_size=size).eval()
    expected.load_state_dict(state)
    x = picture(*size)
    torch.testing.assert_close(clip_feature(vit, x), own_feature(expected, x), atol=1e-5, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(PATCHES, PATCHES, PATCHES, PATCHES, st.sampled_from(["token", "avg", "map"]), st.booleans())
def test_a_module_of_any_grid(
    r0: int, c0: int, rows: int, columns: int, pool: str, apart: bool
) -> None:
    """From one grid to another, neither square; with registers, whose positions may be apart."""
    options = {"global_pool": pool, "reg_tokens": 2, "depth": 1, "no_embed_class": apart}
    vit = tiny_vit(img_size=(8 * r0, 8 * c0), **options)
    size = 8 * rows, 8 * columns
    backbone, made_for, _ = copied_backbone(vit, size_of(*size))
    assert made_for == size_of(*size)
    expected = tiny_vit(img_size=size, **options)
    state, prefix = vit.state_dict(), 0 if apart else 3
    state["pos_embed"] = resized_grid(state["pos_embed"], prefix, (r0, c0), (rows, columns))
    expected.load_state_dict(state)
    x = picture(*size)
    found = clip_feature(backbone.vit, x)
    torch.testing.assert_close(found, own_feature(expected, x), atol=1e-5, rtol=1e-5)
    assert not torch.equal(vit.state_dict()["cls_token"], torch.zeros(1, 1, 48))


@settings(max_examples=10, deadline=None)
@given(
    PATCHES,
    PATCHES,
    st.sampled_from(["cat", "axial", "mixed"]),
    st.sampled_from(["token", "avg", "map"]),
)
def test_an_eva_whose_positions_are_turned(rows: int, columns: int, rope: str, pool: str) -> None:
    def eva(size: tuple[int, int]) -> Eva:
        torch.manual_seed(0)
        kinds: dict = {
            "cat": {"rope_type": "cat", "ref_feat_shape": (4, 4)},
            "axial": {"rope_type": "dinov3", "use_abs_pos_emb": False, "num_reg_tokens": 2},
            "mixed": {"rope_type": "mixed"},
        }
        return Eva(
            *(size, 8, 3, 0, pool, 48, 2, 4),
            **{"use_rot_pos_emb": True, "dynamic_img_size": False, **kinds[rope]},
        )

    module, size = eva((32, 32)).eval(), (8 * rows, 8 * columns)
    randomise(module)
    backbone, _, _ = copied_backbone(module, size_of(*size))
    expected = eva(size).eval()
    state = module.state_dict()
    if "pos_embed" in state:
        state["pos_embed"] = resized_grid(state["pos_embed"], 1, (4, 4), (rows, columns))
    expected.load_state_dict(state)
    x = picture(*size)
    for method in ("linear_probe", "aim"):
        found = clip_feature(backbone.vit, x, method)
        torch.testing.assert_close(found, own_feature(expected, x), atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(PATCHES, PATCHES)
def test_an_open_clip_tower(rows: int, columns: int) -> None:
    card = {"width": 64, "layers": 2, "patch_size": 8, "head_width": 32}
    tower = _build_vision_tower(32, {**card, "image_size": 32}, True).eval()
    randomise(tower)
    size = 8 * rows, 8 * columns
    vit, state = tower_to_timm(tower, "small", size_of(*size))
    fit_state(vit, state, "small")
    other = _build_vision_tower(32, {**card, "image_size": size}, True).eval()
    own = tower.state_dict()
    table = own["positional_embedding"][None]
    own["positional_embedding"] = resized_grid(table, 1, (4, 4), (rows, columns))[0]
    other.load_state_dict(own)
    other.proj = None
    x = picture(*size)
    with torch.no_grad():
        expected = other(x)
    torch.testing.assert_close(clip_feature(vit.eval(), x), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None)
@given(st.integers(14, 40), st.integers(14, 40))
def test_a_swin_whose_windows_keep_their_size(rows: int, columns: int) -> None:
    """Odd grids and grids that are no whole windows too: both are padded."""
    swin, size = tiny_swin(112), (4 * rows, 4 * columns)
    backbone, _, _ = copied_backbone(swin, size_of(*size))
    expected = SwinTransformer(size, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=0)
    expected.load_state_dict(swin.state_dict())
    x = picture(*size)
    for method in ("linear_probe", "aim"):
        found = build_method(method, copy.deepcopy(backbone.vit), 3, T, METHODS[method].Config())
        found.head = nn.Identity()
        with torch.no_grad():
            y = found.eval()(x[:, :, None].expand(-1, -1, T, -1, -1))
        torch.testing.assert_close(y, own_feature(expected.eval(), x), atol=1e-5, rtol=1e-5)


def test_a_swin_whose_windows_shrink_has_timms_own() -> None:
    """7 x 14 patches behind the first stage, 28 x 14 in it: windows of 4 x 7 at the end."""
    swin = tiny_swin(56)
    backbone, _, _ = copied_backbone(swin, (32, 112))
    expected = SwinTransformer(
        (32, 112), embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=0
    )
    from timm.models.swin_transformer import checkpoint_filter_fn

    expected.load_state_dict(checkpoint_filter_fn(swin.state_dict(), expected))
    x = picture(32, 112)
    assert backbone.vit.layers[1].blocks[0].window_size == (4, 7)
    torch.testing.assert_close(
        clip_feature(backbone.vit, x), own_feature(expected.eval(), x), atol=1e-5, rtol=1e-5
    )
    # Its tables once more, for the same grid: as they are, and not taken for those of squares.
    again, _, _ = copied_backbone(backbone.vit, (32, 112))
    fit_state(again.vit, backbone.vit.state_dict(), "again", (8, 28))
    assert all(
        torch.equal(t, again.vit.state_dict()[n]) for n, t in backbone.vit.state_dict().items()
    )
    with pytest.raises(
        VidpipeError, match=r"again: .*a Swin's biases for 8 x 28 patches cannot be re"
    ):
        fit_state(tiny_swin(56), backbone.vit.state_dict(), "again", (8, 28))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_on_a_wide_frame(name: str) -> None:
    """As the image model at the start where it says so, and one clip as in a batch."""
    kind = METHODS[name]
    vit = tiny_vit(img_size=(24, 48), depth=4)
    model = build_method(name, copy.deepcopy(vit), 3, T, kind.Config()).eval()
    x = picture(24, 48)
    clips = torch.stack([x, x.flip(0)], 2)
    with torch.no_grad():
        if model.starts_as_image_model:
            still = model(x[:, :, None].expand(-1, -1, T, -1, -1))
            torch.testing.assert_close(still, model.head(own_feature(vit, x)), atol=1e-5, rtol=1e-5)
        for parameter in model.adapter_state().values():
            parameter += 0.1 * torch.randn_like(parameter)
        expected = model(clips)
        torch.testing.assert_close(model(clips[:1]), expected[:1], atol=1e-5, rtol=1e-5)
        if model.not_mergeable is None:
            merged = model.double().merge().eval()
            torch.testing.assert_close(
                merged(clips.double()).float(), expected, atol=1e-5, rtol=1e-5
            )
    assert gmacs(model.float(), (24, 48)) > 0


def test_the_cost_is_that_of_the_patches() -> None:
    """Of 2 x 8 and 4 x 4 patches the same, of 4 x 8 more than twice: attention is quadratic."""

    def macs(size: tuple[int, int]) -> float:
        return macs_by_kind(tiny_vit(img_size=size), size_of(*size), 0)[0]

    assert macs((16, 64)) == macs((32, 32))
    assert macs((32, 64)) > 1.9 * macs((32, 32))


@pytest.mark.parametrize("size", [(48, 108), (36, 60), (24, 96)])
def test_weights_of_a_grid_that_is_not_square_keep_it(
    size: tuple[int, int], tmp_path: Path
) -> None:
    """4 x 9 patches are as many as 6 x 6: the file's header tells them apart."""
    vit = timm.create_model(ARCHITECTURE, num_classes=0, img_size=size)
    randomise(vit)
    model = vidpipe.create_model("aim", vit, num_classes=2, num_frames=T)
    model.eval()
    frames = torch.randint(0, 256, (T, 3, 70, 110), dtype=torch.uint8)
    expected = model(model.preprocess(frames))
    vidpipe.save(model, tmp_path / "out", classes=["a", "b"])
    again = vidpipe.load(tmp_path / "out", device="cpu").model
    assert again.img_size == size
    torch.testing.assert_close(again(again.preprocess(frames)), expected)


def test_a_file_whose_positions_are_no_square_fits_its_own_grid_alone(tmp_path: Path) -> None:
    vit = tiny_vit(img_size=(24, 64))
    other = tiny_vit(seed=1, img_size=(24, 64))
    fit_state(other, vit.state_dict(), "wide")
    assert torch.equal(other.pos_embed, vit.pos_embed)
    with pytest.raises(VidpipeError, match=r"wide: .*24 positions .* are no grid of 2 x 8"):
        fit_state(other, vit.state_dict(), "wide", (2, 8))
    either = tiny_vit(img_size=(16, 64))
    with pytest.raises(
        VidpipeError, match=r"wide: .*16 positions .* may be 4 x 4 or 2 x 8; say which"
    ):
        fit_state(tiny_vit(img_size=(16, 64)), either.state_dict(), "wide")
    save_file(load_file(WEIGHTS), tmp_path / "w.safetensors", metadata={"grid": "4 by 4"})
    with pytest.raises(VidpipeError, match="its header says grid '4 by 4'; expected ROWSxCOLUMNS"):
        load_backbone(STILL.model_copy(update={"weights": str(tmp_path / "w.safetensors")}), 48)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vit_tiny_patch16_224",
            230,
            "230 px is no .* patch of 16 px; nearest that work: 224 and 240",
        ),
        (
            "vit_small_patch14_dinov2",
            (224, 400),
            "224 x 400 .* of 14 px; .*: 224 x 392 and 224 x 406",
        ),
        (
            "vit_tiny_r_s16_p8_224",
            72,
            "72 px is no .* patch of 32 px; nearest that work: 64 and 96",
        ),
        ("swin_tiny_patch4_window7_224", (226, 224), "226 x 224 .* of 4 px; .*: 224 and 228 x 224"),
        ("vit_base_patch32_224", 16, "16 px is no .* patch of 32 px; nearest that work: 32"),
    ],
)
def test_a_size_that_would_drop_pixels_is_refused_with_those_that_work(
    name: str, size: Size, message: str
) -> None:
    with torch.device("meta"):
        config = BackboneConfig(name=name, weights="none")
        with pytest.raises(VidpipeError, match=f"transform.size: {message}"):
            architecture(config, size)


def test_the_size_of_the_card_is_taken_though_its_authors_drop_pixels() -> None:
    with torch.device("meta"):
        config = BackboneConfig(name="vit_so400m_patch14_siglip_384", weights="none")
        assert architecture(config, 384).patch_embed.grid_size == (27, 27)
        with pytest.raises(VidpipeError, match="no multiple"):
            architecture(config, 400)


def test_a_file_of_another_size_fits_and_one_of_another_model_is_named(tmp_path: Path) -> None:
    file = backbone_file(tmp_path / "tiny.safetensors")
    config = BackboneConfig(name="vit_tiny_patch16_224", weights=str(file))
    grids = {size: load_backbone(config, size).vit.patch_embed.grid_size for size in (32, (32, 64))}
    assert grids == {32: (2, 2), (32, 64): (2, 4)}
    for name, message in {
        "swin_tiny_patch4_window7_224": "tiny.safetensors: .* those of a plain ViT, .* is a Swin",
        "vit_small_patch16_224": "tiny.safetensors: .* wrong shapes",
    }.items():
        with pytest.raises(VidpipeError, match=message):
            load_backbone(config.model_copy(update={"name": name}), 224)


def test_grids_of_all_small_sizes_are_what_is_asked_for() -> None:
    for rows, columns in itertools.product(range(2, 5), repeat=2):
        vit = load_backbone(STILL, size_of(12 * rows, 12 * columns)).vit
        assert isinstance(vit, VisionTransformer)
        assert vit.patch_embed.grid_size == (rows, columns)
        assert vit.pos_embed.shape[1] == 1 + rows * columns
