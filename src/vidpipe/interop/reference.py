"""Checkpoints of the authors' released code -> vidpipe models with the same logits.

Layouts: AIM and ZeroI2V (`backbone.` + `cls_head.fc_cls.`, mmengine) and ST-Adapter (no prefix).
Sizes come from the tensors; what tensors cannot tell (heads, scales, shifts) comes from `meta`, in
the authors' constructor keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.layers import QuickGELU
from timm.models import VisionTransformer
from torch import Tensor, nn

from vidpipe.errors import VidpipeError
from vidpipe.interop.aim_swin import build_aim_swin
from vidpipe.interop.method_options import adapted_blocks, method_config
from vidpipe.interop.names import (
    ST_POSITIONS,
    depth_of,
    dimensions,
    frames_of,
    grid_of,
    positive,
    translate,
)
from vidpipe.methods.base import MethodConfig
from vidpipe.methods.config import AIMConfig, STAdapterConfig, ZeroI2VConfig
from vidpipe.methods.registry import VideoModel, build_method
from vidpipe.weights import refuse_mismatch


def build_from_reference(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VideoModel:
    """The model a released checkpoint describes, in eval mode, with its weights.

    `state_dict`: a whole model in the authors' layout (AIM, ST-Adapter, ZeroI2V on CLIP ViT, AIM on
    ImageNet ViT and Swin; ZeroI2V also merged). `meta`: `method`, `heads` or `num_heads` and the
    authors' constructor options. Returns a module from (B, 3, T, H, W) to logits; its attribute
    `reference_names` maps our parameter names to the checkpoint's.
    Raises VidpipeError for another layout, missing options, or tensors that do not fit.
    """
    if meta.get("backbone") == "swin":
        return build_aim_swin(state_dict, meta)
    method = str(meta.get("method"))
    if method not in ("aim", "st_adapter", "zeroi2v"):
        raise VidpipeError(f"meta.method: {method!r}; expected aim, st_adapter or zeroi2v")
    if meta.get("backbone", "clip_vit") not in ("clip_vit", "timm_vit"):
        raise VidpipeError(f"meta.backbone: {meta['backbone']!r} cannot be imported yet")
    state, names = translate(state_dict, method)
    if "vit.patch_embed.proj.weight" not in state and any(n.startswith("adapters.") for n in state):
        raise VidpipeError(
            "checkpoint: it holds the trained tensors only, and no backbone; join it with the "
            "backbone's weights by `vidpipe import-checkpoint`"
        )
    vit = _build_vit(state, meta)
    num_frames = frames_of(state, meta)
    config = method_config(method, state, meta)
    _refuse_contradictions(state, meta, config)
    model = build_method(method, vit, state["head.weight"].shape[0], num_frames, config)
    refuse_mismatch("checkpoint", model.state_dict(), state)
    model.load_state_dict(state)
    model.reference_names = names  # type: ignore[assignment]
    return model.eval()


def _heads(width: int, meta: Mapping[str, Any]) -> int:
    """CLIP and ImageNet ViTs have heads of 64 channels where nothing else is said."""
    heads = meta.get("heads", meta.get("num_heads"))
    if heads is None:
        if width % 64:
            raise VidpipeError(
                f"meta.heads is missing, and a width of {width} has no heads of 64 channels"
            )
        return width // 64
    if width % positive(heads, "meta.heads"):
        raise VidpipeError(f"meta.heads: {heads} heads do not divide the width {width}")
    return int(heads)


def _build_vit(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VisionTransformer:
    """CLIP's tower (QuickGELU, ln_pre, eps 1e-5) or timm's ImageNet ViT (GELU, eps 1e-6)."""
    width, _, patch_size, _ = dimensions(state, "vit.patch_embed.proj.weight", 4)
    side = grid_of(state)
    clip = "vit.norm_pre.weight" in state
    if meta.get("backbone") == ("timm_vit" if clip else "clip_vit"):
        raise VidpipeError(
            f"meta.backbone: {meta['backbone']!r}, but the checkpoint has "
            f"{'' if clip else 'no '}ln_pre, as {'CLIP' if clip else 'ImageNet'} ViTs do"
        )
    hidden = dimensions(state, "vit.blocks.0.mlp.fc1.weight", 2)[0]
    return VisionTransformer(
        img_size=side * patch_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth_of(state),
        num_heads=_heads(width, meta),
        mlp_ratio=hidden / width,
        qkv_bias="vit.blocks.0.attn.qkv.bias" in state,
        pre_norm=clip,
        act_layer=QuickGELU if clip else nn.GELU,
        norm_layer=nn.LayerNorm if clip else partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
        weight_init="skip",
    )


def _refuse_contradictions(
    state: Mapping[str, Tensor], meta: Mapping[str, Any], config: MethodConfig
) -> None:
    """Compare every option of `meta` that the tensors also tell; another value is another model."""
    classes, width = dimensions(state, "head.weight", 2)
    found: dict[str, Any] = {"num_classes": classes, "width": width, "embed_dim": width}
    if "vit.patch_embed.proj.weight" in state:
        patch = state["vit.patch_embed.proj.weight"].shape[-1]
        size, depth = grid_of(state) * patch, depth_of(state)
        found |= {"patch_size": patch, "input_resolution": size, "img_size": size}
        found |= {"layers": depth, "depth": depth}
    if "temporal_embedding.weight" in state:
        found["num_frames"] = state["temporal_embedding.weight"].shape[1]
    if isinstance(config, AIMConfig):
        found["num_tadapter"] = config.num_temporal_adapters
    if isinstance(config, ZeroI2VConfig) and config.adapters and meta.get("num_tadapter") == 2:
        # 2 asks for an adapter before the attention; a merged model has none of any kind.
        found["num_tadapter"] = 1 + any(name.startswith("attn_in") for name in config.adapters)
    if isinstance(config, STAdapterConfig):
        found["adapter_kernel_size"] = list(config.kernel_size)
        found["adapter_width"] = round(width * config.bottleneck_ratio)
        found["adapter_layers"] = len(adapted_blocks(state))
        for theirs, ours in ST_POSITIONS.items():
            found[theirs] = ours in config.positions
    for key, own in found.items():
        given = meta.get(key)
        if isinstance(given, list | tuple):
            # One size for both sides of a square may be written twice.
            given = given[0] if isinstance(own, int) and set(given) == {own} else list(given)
        if given is not None and given != own:
            raise VidpipeError(f"meta.{key} is {given}, but the checkpoint's tensors have {own}")
