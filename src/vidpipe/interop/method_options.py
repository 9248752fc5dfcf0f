"""A method's options in an authors' checkpoint: from its tensors where they tell, else from `meta`.

`meta` holds the authors' constructor keywords.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from vidpipe.errors import VidpipeError
from vidpipe.interop.names import (
    ST_POSITIONS,
    ZEROI2V_ADAPTERS,
    required,
)
from vidpipe.methods.base import MethodConfig
from vidpipe.methods.config import AIMConfig, Position, STAdapterConfig, ZeroI2VConfig


def method_config(
    method: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> MethodConfig:
    """The method's options: from the tensors where they tell, else from `meta`."""
    configs = {"aim": _aim_config, "st_adapter": _st_adapter_config, "zeroi2v": _zeroi2v_config}
    try:
        return configs[method](state, meta)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise VidpipeError(
            f"checkpoint: {where} cannot be {wrong['input']!r} ({wrong['msg']})"
        ) from None


def _bottleneck_ratio(state: Mapping[str, Tensor]) -> float:
    for name, tensor in state.items():
        if name.startswith("adapters.") and name.endswith("fc1.weight") and tensor.ndim == 2:
            return tensor.shape[0] / tensor.shape[1]
    raise VidpipeError("checkpoint: no adapter weights; expected *dapter*.fc1.weight tensors")


def _adapter_parts(state: Mapping[str, Tensor], part: int) -> list[str]:
    parts = {n.split(".")[part] for n in state if n.startswith("adapters.")}
    return sorted(parts)


def _aim_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    return AIMConfig(
        bottleneck_ratio=_bottleneck_ratio(state),
        scale=required(meta, "adapter_scale"),
        num_temporal_adapters=2 if "temporal_in" in _adapter_parts(state, 2) else 1,
        drop_path=meta.get("drop_path_rate", 0.2),
    )


def adapted_blocks(state: Mapping[str, Tensor]) -> dict[int, set[str]]:
    """ST-Adapter's positions in each adapted block, by index."""
    found: dict[int, set[str]] = {}
    for index, position in (part.split("_", 1) for part in _adapter_parts(state, 1)):
        found.setdefault(int(index), set()).add(position)
    return dict(sorted(found.items()))


def _st_adapter_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    kernel = next((t.shape[2:] for n, t in state.items() if n.endswith("conv.weight")), None)
    if kernel is None:
        raise VidpipeError("checkpoint: no adapter convolution found")
    adapted = adapted_blocks(state)
    at: dict[Position, tuple[int, ...]] = {}
    for position in ST_POSITIONS.values():
        if blocks := tuple(index for index, found in adapted.items() if position in found):
            at[position] = blocks
    same = len(set(at.values())) == 1
    return STAdapterConfig(
        bottleneck_ratio=_bottleneck_ratio(state),
        kernel_size=tuple(kernel),
        positions=tuple(at),
        blocks=next(iter(at.values())) if same else at,
    )


def _zeroi2v_config(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> MethodConfig:
    found = _adapter_parts(state, 2)
    width = state["head.weight"].shape[1]
    return ZeroI2VConfig(
        adapters=tuple(name for name in ZEROI2V_ADAPTERS.values() if name in found),
        bottleneck_ratio=_bottleneck_ratio(state) if found else 0.25,
        # A merged model has no adapter to scale; for all others a guess would cost accuracy silently.
        scale=required(meta, "adapter_scale") if found else 1.0,
        channel_offsets=channel_offsets(width, required(meta, "stdha")),
    )


def channel_offsets(width: int, stdha: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """The released code's channel groups: D/div channels an offset, in this order, the rest at 0."""
    if not isinstance(stdha, Mapping):
        raise VidpipeError(f"meta.stdha is {stdha!r}; expected options such as shift_div: 12")
    plan: list[tuple[str, int, bool]] = [
        ("shift_div", -1, True),
        ("shift_div", 1, True),
        ("long_shift_div", -2, True),
        ("shift1_div", -1, True),
        ("shift1_div", 1, True),
        ("shift2_div", -2, True),
        ("shift2_div", 2, True),
        ("shift3_div", -3, True),
        ("shift3_div", 3, bool(stdha.get("shift3_right"))),
        ("shift4_div", -4, True),
        ("shift4_div", 4, bool(stdha.get("shift4_right"))),
    ]
    known = {key for key, _, _ in plan} | {"shift3_right", "shift4_right"}
    if unknown := set(stdha) - known:
        raise VidpipeError(f"meta.stdha: unknown options {sorted(unknown)}")
    divisors = {key: stdha.get(key) or 0 for key, _, _ in plan}
    for key, divisor in divisors.items():
        if isinstance(divisor, bool) or not isinstance(divisor, int) or divisor < 0:
            raise VidpipeError(f"meta.stdha.{key} is {divisor!r}; expected a whole number")
    groups = [(width // divisors[key], dt) for key, dt, on in plan if on and divisors[key]]
    rest = width - sum(channels for channels, _ in groups)
    if rest < 0:
        raise VidpipeError(f"meta.stdha: {dict(stdha)} moves more than the {width} channels")
    return (*groups, (rest, 0)) if rest else tuple(groups)
