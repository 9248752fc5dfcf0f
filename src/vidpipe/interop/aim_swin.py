"""Checkpoints of AIM's released Swin class -> our AIM on timm's Swin.

The authors merge patches at the end of stage i, timm at the start of stage i + 1; both stack the
four neighbours in the same order. Index and mask buffers are rebuilt from the sizes, not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models import SwinTransformer
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.methods.base import VideoModel
from vidpipe.methods.config import AIMConfig
from vidpipe.methods.registry import build_method
from vidpipe.weights import refuse_mismatch

ADAPTERS = {"T_Adapter": "temporal", "S_Adapter2": "spatial", "S_Adapter": "mlp"}
BUFFERS = ("relative_position_index", "t_relative_coords", "attn_mask")
SIZES = ("img_size", "patch_size", "num_frames", "embed_dim", "depths", "num_heads", "window_size")


def build_aim_swin(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> VideoModel:
    """The model of a `SwinTransformer2D_Adapter` checkpoint; see `build_from_reference`.

    `meta` gives the authors' constructor keywords (`SIZES`), since windows and heads cannot be read
    from tensors. Raises VidpipeError for missing options or tensors that do not fit.
    """
    if meta.get("method") != "aim":
        raise VidpipeError(f"meta.method: {meta.get('method')!r}; only aim was released on Swin")
    if missing := [key for key in SIZES if key not in meta]:
        raise VidpipeError(f"meta.{missing[0]} is missing: it cannot be read from the tensors")
    frames, *patch = meta["patch_size"]
    if frames != 2 or len(set(patch)) != 1:
        raise VidpipeError(f"meta.patch_size: {meta['patch_size']}, expected [2, n, n]")
    depths = [int(depth) for depth in meta["depths"]]
    names = {
        _our_name(name, depths): name for name in state_dict if name.split(".")[-1] not in BUFFERS
    }
    state = {ours: state_dict[theirs] for ours, theirs in names.items()}
    adapter, head = state.get("adapters.0.mlp.fc1.weight"), state.get("head.weight")
    if adapter is None or head is None:
        raise VidpipeError("checkpoint: no adapters or no head; is it a whole aim model?")

    swin = SwinTransformer(
        img_size=int(meta["img_size"]),
        patch_size=int(patch[0]),
        embed_dim=int(meta["embed_dim"]),
        depths=tuple(depths),
        num_heads=tuple(meta["num_heads"]),
        window_size=_window(meta["window_size"]),
        mlp_ratio=float(meta.get("mlp_ratio", 4.0)),
        qkv_bias=bool(meta.get("qkv_bias", True)),
        num_classes=0,
    )
    config = AIMConfig(
        bottleneck_ratio=adapter.shape[0] / adapter.shape[1],
        # The released Swin class has the paper's 0.5 written into it.
        scale=meta.get("adapter_scale", 0.5),
        drop_path=meta.get("drop_path_rate", 0.2),
    )
    model = build_method("aim", swin, head.shape[0], int(meta["num_frames"]), config)
    refuse_mismatch("checkpoint", model.state_dict(), state)
    model.load_state_dict(state)
    model.reference_names = names  # type: ignore[assignment]
    return model.eval()


def _our_name(name: str, depths: list[int]) -> str:
    name = re.sub(r"^backbone\.", "", name)
    if name.startswith("cls_head.fc_cls."):
        return name.replace("cls_head.fc_cls.", "head.")
    if match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
        return f"vit.layers.{int(match[1]) + 1}.downsample.{match[2]}"
    if match := re.fullmatch(r"layers\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        index, rest = sum(depths[: int(match[1])]) + int(match[2]), match[3]
        if rest == "attn.temporal_position_bias_table":
            return f"temporal_bias.{index}"
        part, _, weight = rest.partition(".D_")
        if part in ADAPTERS:
            return f"adapters.{index}.{ADAPTERS[part]}.{weight}"
    return f"vit.{name}"


def _window(given: Any) -> int:
    """A window's side; Video Swin's (time, height, width) form has its height and width equal."""
    return int(given if isinstance(given, int) else given[-1])
