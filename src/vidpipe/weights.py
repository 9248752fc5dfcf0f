"""Weight files and sets of tensors: read without pickle, identify by hash, refuse what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidpipe.errors import VidpipeError


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
            from safetensors import safe_open

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
