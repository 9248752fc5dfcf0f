"""Step time and memory of the three methods on image models of today, beside their plain frozen forward.

    python benchmarks/modern_backbones.py [--device cuda] [--precision bf16] [--clips 8] [--rounds 20]

Random weights, 8 frames of 224 pixels. A step is forward, backward and AdamW; `forward` is the frozen
image model on the same frames, without a graph. Both are medians over rounds that alternate between the
two. Peak memory is CUDA's, of a step. `attention` names the kernels that scaled dot products run on, as
the profiler sees them: a fused one has `flash`, `efficient` or `cudnn` in its name.
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
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import make_optimizer

T, SIZE = 8, 224
BACKBONES = (
    "vit_base_patch16_224",
    "vit_base_patch16_dinov3",
    "vit_pe_core_base_patch16_224",
)
NAMES = ("st_adapter", "zeroi2v", "aim")
FUSED = {"flash": "flash", "efficient": "efficient", "fmha": "efficient", "cudnn": "cudnn"}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def attention_kernels(work: Callable[[], object], device: torch.device) -> str:
    """Which fused attention the profiler saw; `none` where there was none."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        work()
    names = [event.key.lower() for event in profile.key_averages()]
    found = {title for key, title in FUSED.items() if any(key in name for name in names)}
    return "+".join(sorted(found)) or "none"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    given = parser.parse_args()
    use_cpu(1)
    device = torch.device(given.device)
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 1 thread"
    print(
        f"{title}, {given.precision}, {given.clips} clips of {T} x {SIZE} px"
        f", torch {torch.__version__}"
    )
    print("| image model | method | forward ms | step ms | step / forward | peak GiB | attention |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for backbone in given.backbones:
        for name in NAMES:
            print(measured(backbone, name, device, given), flush=True)


def measured(backbone: str, name: str, device: torch.device, given: argparse.Namespace) -> str:
    """One row of the table."""
    plain: Any = timm.create_model(backbone, num_classes=0, img_size=SIZE).to(device).eval()
    image = timm.create_model(backbone, num_classes=0, img_size=SIZE)
    model = build_method(name, image, 400, T, METHODS[name].Config()).to(device).train()
    model.clip_keys.now = torch.tensor([lowbias32(1)] * given.clips, device=device)
    config = TrainConfig(epochs=1, batch_size=given.clips, warmup_epochs=0)
    optimizer = make_optimizer(model, config, device)
    clips = torch.randn(given.clips, 3, T, SIZE, SIZE, device=device)
    labels = torch.zeros(given.clips, dtype=torch.long, device=device)
    frames = clips.transpose(1, 2).flatten(0, 1)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = F.cross_entropy(model(clips), labels)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        with cast:
            plain.forward_features(frames)

    used = attention_kernels(step, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = [(seconds(forward, device), seconds(step, device)) for _ in range(given.rounds + 1)][1:]
    base, own = (1000 * statistics.median(times) for times in zip(*rows, strict=True))
    ratio = statistics.median(second / first for first, second in rows)
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if device.type == "cuda" else "-"
    cells = (backbone, name, f"{base:.1f}", f"{own:.1f}", f"{ratio:.2f}", peak, used)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
