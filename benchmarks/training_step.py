"""What a training step costs beside the plain frozen forward, and what it keeps for the backward pass.

    python benchmarks/training_step.py [--memory-only] [--rounds 5] [--threads 1] [--dropout 0.1]

ViT-B/16, 8 frames of 224 pixels, one clip, CPU, fp32, random weights. Each round times the frozen image
model's forward (no graph) and one step (forward, backward, AdamW) of each method, one after the other,
so that a machine that slows down slows all of them; ratios are medians over rounds. Memory is counted,
not measured: MiB a block that autograd keeps, and of a block that is recomputed. With --dropout, only
ZeroI2V is timed, without dropout and with it in each of its 48 adapters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F

from vidpipe.cpu import use_cpu
from vidpipe.methods.noise import lowbias32
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.profile import saved_by_block
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import make_optimizer

T, SIZE = 8, 224
FLOORS = {"linear_probe": 1.0, "st_adapter": 2.1, "zeroi2v": 2.55, "aim": 3.0, "full_finetune": 3.0}
"""Of the arithmetic alone, with every token through every block."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dropout", type=float)
    given = parser.parse_args()
    use_cpu(given.threads)
    config = TrainConfig(epochs=1, batch_size=1, warmup_epochs=0)
    options: dict[str, dict[str, float]] = {name: {} for name in FLOORS}
    if given.dropout is not None:
        with_dropout = f"zeroi2v, dropout {given.dropout}"
        options = {"zeroi2v": {}, with_dropout: {"adapter_dropout": given.dropout}}
    models = {}
    for title, own in options.items():
        name = title.partition(",")[0]
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        models[title] = build_method(name, vit, 400, T, METHODS[name].Config(**own))
        models[title].clip_keys.now = torch.tensor([lowbias32(1)])
    print("| method | MiB a block | recomputed | before and after the blocks |")
    print("| --- | --- | --- | --- |")
    for name, model in models.items():
        saved = saved_by_block(model, SIZE, "cpu")
        held, kept = max(saved.blocks) / 2**20, max(saved.inputs) / 2**20
        recomputed = kept if held else 0.0
        print(f"| {name} | {held:.1f} | {min(held, recomputed):.1f} | {saved.rest / 2**20:.1f} |")
    if given.memory_only:
        return
    clip, label = torch.randn(1, 3, T, SIZE, SIZE), torch.zeros(1, dtype=torch.long)
    plain: Any = timm.create_model("vit_base_patch16_224", num_classes=0).eval()
    frames = clip[0].transpose(0, 1).contiguous()

    def step(name: str) -> None:
        model, optimizer = models[name].train(), optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(clip), label).backward()
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        plain.forward_features(frames)

    optimizers = {n: make_optimizer(m, config, torch.device("cpu")) for n, m in models.items()}
    ratios: dict[str, list[float]] = {name: [] for name in models}
    base = []
    for _ in range(given.rounds + 1):
        base.append(seconds(forward))
        for name in models:
            # Beside each other: a forward just before and after the step.
            before, it, after = seconds(forward), seconds(lambda: step(name)), seconds(forward)  # noqa: B023
            ratios[name].append(it / statistics.mean((before, after)))
    print(f"\nfrozen forward {statistics.median(base[1:]):.2f} s, {given.threads} threads")
    print("| method | step / frozen forward | floor |")
    print("| --- | --- | --- |")
    for name, found in ratios.items():  # the first round warms up
        print(f"| {name} | {statistics.median(found[1:]):.2f} | {FLOORS[name.partition(',')[0]]} |")


if __name__ == "__main__":
    main()
