"""Tensors of the authors' checkpoints by our names, and what their shapes tell.

Layouts: AIM and ZeroI2V (`backbone.` + `cls_head.fc_cls.`, mmengine) and ST-Adapter (no prefix).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vidpipe.backbones.openclip import as_tokens, timm_name
from vidpipe.errors import VidpipeError
from vidpipe.methods.st_adapter import Position
from vidpipe.methods.zeroi2v import AdapterName

ZEROI2V_ADAPTERS: dict[str, AdapterName] = {
    "T_Adapter_in": "attn_in",
    "T_Adapter_in_q": "attn_in_q",
    "T_Adapter_in_k": "attn_in_k",
    "T_Adapter_in_v": "attn_in_v",
    "S_Adapter": "attn_out",
    "MLP_Adapter": "mlp_in",
    "MLP_Adapter_out": "mlp_out",
}
AIM_ADAPTERS = {
    "T_Adapter_in": "temporal_in",
    "T_Adapter": "temporal",
    "S_Adapter": "spatial",
    "MLP_Adapter": "mlp",
}
ST_POSITIONS: dict[str, Position] = {
    "adapter_pre_attn": "before_attn",
    "adapter_pre_mlp": "before_mlp",
}

# Outside the tower: (pattern, replacement) in order, the authors' name -> ours.
_RENAMES: list[tuple[str, str]] = [
    (r"^(module\.)+", ""),  # of DistributedDataParallel
    (r"^backbone\.", ""),
    (r"^(cls_head\.fc_cls|fc)\.", "head."),
    (r"^temporal_embedding$", "temporal_embedding.weight"),
    (r"\.D_fc([12])\.", r".fc\1."),
]


def our_name(name: str, method: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if name.startswith(("head.", "temporal_embedding.")):
        return name
    # AIM's ImageNet ViT already has timm's names, but for the final norm, which is CLIP's.
    name = f"vit.{timm_name(name)}"
    if match := re.fullmatch(r"vit\.blocks\.(\d+)\.(\w*[aA]dapter\w*)\.(.+)", name):
        index, adapter, rest = match.groups()
        if method == "st_adapter" and adapter in ST_POSITIONS:
            return f"adapters.{index}_{ST_POSITIONS[adapter]}.{rest}"
        table: Mapping[str, str] = AIM_ADAPTERS if method == "aim" else ZEROI2V_ADAPTERS
        if method != "st_adapter" and adapter in table:
            return f"adapters.{index}.{table[adapter]}.{rest}"
    return name


def translate(
    state_dict: Mapping[str, Tensor], method: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by our names, in fp32, and each of our names with the checkpoint's.

    CLIP's projection into the text space is left out: no method uses it.
    Raises VidpipeError for what is no tensor, two names for one tensor, or no classifier.
    """
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in state_dict.items():
        if not isinstance(tensor, Tensor) or not isinstance(theirs, str):
            raise VidpipeError(
                f"checkpoint: {theirs} is a {type(tensor).__name__}, not a tensor; expected the "
                "state dict itself"
            )
        ours = our_name(theirs, method)
        if ours in names:
            raise VidpipeError(f"checkpoint: {names[ours]} and {theirs} are both {ours}")
        names[ours] = theirs
        state[ours] = tensor.float() if tensor.is_floating_point() else tensor
    for name in ("vit.cls_token", "vit.pos_embed"):
        if name in state and state[name].ndim and state[name].numel():
            state[name] = as_tokens(state[name])
    width = dimensions(state, "head.weight", 2, method)[1]
    for name in ("vit.proj", "vit.visual.proj"):
        if name in state and state[name].ndim == 2 and state[name].shape[0] == width:
            del state[name], names[name]
    return state, names


def frames_of(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> int:
    """Frames a clip: of the temporal embedding, or from `meta` where there is none."""
    if "temporal_embedding.weight" in state:
        return dimensions(state, "temporal_embedding.weight", 3)[1]
    return positive(required(meta, "num_frames"), "meta.num_frames")


def depth_of(state: Mapping[str, Tensor]) -> int:
    indices = {int(m[1]) for n in state if (m := re.match(r"vit\.blocks\.(\d+)\.", n))}
    if not indices:
        raise VidpipeError("checkpoint: no transformer blocks; is it a whole model?")
    return 1 + max(indices)


def grid_of(state: Mapping[str, Tensor]) -> int:
    """Patches along one side of the position grid, which must be square, with a class token."""
    tokens = dimensions(state, "vit.pos_embed", 3)[1]
    side = round(max(tokens - 1, 0) ** 0.5)
    if side < 1 or side * side != tokens - 1:
        raise VidpipeError(
            f"checkpoint: {tokens} position embeddings are no square grid and a class token"
        )
    return side


def dimensions(
    state: Mapping[str, Tensor], name: str, count: int, method: str = ""
) -> tuple[int, ...]:
    if name not in state:
        raise VidpipeError(
            f"checkpoint: no tensor for {name}; is it a whole {method or 'video'} model?"
        )
    shape = tuple(state[name].shape)
    if len(shape) != count or 0 in shape:
        raise VidpipeError(f"checkpoint: {name} has shape {shape}; expected {count} dimensions")
    return shape


def positive(value: Any, what: str) -> int:
    """A whole number; bool is an int to Python, and never meant here."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise VidpipeError(f"{what} is {value!r}; expected a whole number of at least 1")
    return value


def required(meta: Mapping[str, Any], key: str) -> Any:
    if key not in meta:
        raise VidpipeError(f"meta.{key} is missing: it cannot be read from the tensors")
    return meta[key]
