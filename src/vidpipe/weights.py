"""Weight files and sets of tensors: read without pickle, identify by hash, refuse what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vidpipe.errors import VidpipeError

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
"""Of a safetensors header; tensors of other types (complex, 8-bit floats) are no weights of ours."""


def state_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a local file: safetensors, or torch's format without pickled code."""
    if not path.is_file():
        raise VidpipeError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {k: file.get_tensor(k) for k in names}, file.metadata() or {}
        if path.suffix in {".pt", ".pth", ".bin"}:
            content = torch.load(path, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model"):
                content = content.get(key, content)
            return dict(content), {}
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VidpipeError(f"{path} cannot be read: {reason}") from error
    raise VidpipeError(f"{path}: expected a .safetensors, .pt, .pth or .bin file")


def read_metadata(path: Path) -> dict[str, str]:
    """The header's texts of a safetensors file; nothing where there is no such file. Raises VidpipeError
    where it is damaged."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except Exception as error:  # safetensors raises its own type for every corruption
        raise VidpipeError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file of ours.

    Raises VidpipeError where it is missing or damaged, or has numbers that are not finite.
    """
    state = _open(file, lambda opened: {name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    refuse_not_finite(str(file), state)
    return state


def read_header(file: Path) -> dict[str, Tensor]:
    """Names, shapes and types of a .safetensors file's tensors, as tensors without memory.

    Raises VidpipeError where it is missing or damaged.
    """

    def shapes(opened: Any) -> dict[str, Tensor]:
        found = {}
        for name in opened.keys():  # noqa: SIM118 (no mapping)
            part = opened.get_slice(name)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise ValueError(f"{name} is of type {part.get_dtype()}")
            found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        return found

    return _open(file, shapes)


def _open(file: Path, read: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    if not file.is_file():
        raise VidpipeError(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            return read(opened)
    except Exception as error:  # safetensors raises its own type for every corruption
        reason = " ".join(str(error).split())[:300]
        raise VidpipeError(f"{file}: not a readable safetensors file ({reason})") from None


def refuse_not_finite(source: str, state: Mapping[str, Tensor]) -> None:
    """Raise one line naming the first tensor that is complex or holds NaN or infinity: a model of it
    answers all the same, and its answer means nothing."""
    for name, tensor in state.items():
        if tensor.is_complex():
            raise VidpipeError(f"{source}: {name} is complex; expected real weights")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise VidpipeError(
                f"{source}: {name} has numbers that are not finite (NaN or infinity)"
            )


def refuse_mismatch(source: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Raise one line naming missing, unexpected and wrongly shaped tensors; silence is the bug."""

    def some(names: Iterable[str]) -> str:
        listed = sorted(names)
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        return ", ".join(listed[:5]) + more

    problems = []
    if missing := expected.keys() - got.keys():
        problems.append(f"missing keys: {some(missing)}")
    if unexpected := got.keys() - expected.keys():
        problems.append(f"unexpected keys: {some(unexpected)}")
    shapes = [
        f"{name} is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & got.keys()
        if got[name].shape != expected[name].shape
    ]
    if shapes:
        problems.append(f"wrong shapes: {some(shapes)}")
    if problems:
        raise VidpipeError(f"{source}: weights do not fit the model; " + "; ".join(problems))
