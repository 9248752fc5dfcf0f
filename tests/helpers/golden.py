"""What every method computes on made-up weights: the numbers of `tests/golden/methods.safetensors`.

    python tests/helpers/golden.py      # writes them anew; say in the commit why they changed

They are our own, written while the three methods agreed to 1e-5 with the authors' classes
(`../shared/golden`, which a user's clone lacks), so that every clone checks the same promise.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matrix import MATRIX
from safetensors.torch import save_file
from tiny import tiny_vit
from torch import Tensor, nn

from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import make_optimizer, trained_parameters

FILE = Path(__file__).parents[1] / "golden" / "methods.safetensors"
FRAMES, CLASSES, STEPS = 4, 5, 3
CASES = {
    f"{name} {json.dumps(options)}": (name, options)
    for name, options in MATRIX
    if name != "zero_shot"  # which trains nothing
}


def made_up(shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in [-0.5, 0.5) from PCG64's own bits, which numpy promises never to change; torch's and
    numpy's distributions may."""
    bits = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    return torch.from_numpy(bits.astype(np.float32) / 2**24 - 0.5).view(shape)


def model_of(name: str, options: dict[str, Any]) -> VideoModel:
    """In eval mode, so without dropout; no parameter is zero, or adapters would not be seen."""
    config = METHODS[name].Config.model_validate({**options, "lr": 1e-3, "weight_decay": 0.1})
    model = build_method(name, tiny_vit(), CLASSES, FRAMES, config)
    scales = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    with torch.no_grad():
        for seed, (key, parameter) in enumerate(sorted(model.named_parameters())):
            parameter.copy_(0.4 * made_up(tuple(parameter.shape), seed))
            if key in scales or key.endswith(".gamma"):
                parameter += 1
    return model.eval()


def measured(name: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Logits, the gradient's norm for each trained tensor by name, and the losses of a few steps."""
    model = model_of(name, options)
    video, labels = 4 * made_up((2, 3, FRAMES, 32, 32), 10**6), torch.tensor([1, 3])
    config = TrainConfig(epochs=1, batch_size=2, warmup_epochs=0)
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    out: dict[str, Tensor] = {}
    losses = []
    for step in range(STEPS):
        logits = model(video)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            norms = [
                0.0 if p.grad is None else p.grad.norm().item()
                for _, p in sorted(trained_parameters(model).items())
            ]
            out |= {"logits": logits.detach(), "gradients": torch.tensor(norms)}
        optimizer.step()
    return {**out, "losses": torch.tensor(losses)}


def write() -> None:
    tensors, names = {}, {}
    for case, (name, options) in CASES.items():
        tensors |= {f"{case}.{key}": value for key, value in measured(name, options).items()}
        names[case] = " ".join(sorted(trained_parameters(model_of(name, options))))
    save_file(tensors, FILE, metadata=names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
