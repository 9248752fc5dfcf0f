"""What a training step costs on some of the patches (`train.patch_drop`) beside one on all of them.

    python benchmarks/patch_drop.py [--share 0.5] [--device cuda] [--precision bf16] [--rounds 5]

ViT-B/16, 8 frames of 224 pixels, random weights. Rounds alternate between the two steps (forward,
backward, AdamW); ratios are medians over rounds. `saved` is what autograd keeps for the backward pass,
counted once a storage, without parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from vidpipe.cpu import use_cpu
from vidpipe.methods.base import VideoModel
from vidpipe.methods.noise import lowbias32
from vidpipe.methods.patch_drop import PatchDrop
from vidpipe.methods.registry import METHODS, build_method
from vidpipe.training.config import TrainConfig
from vidpipe.training.optim import make_optimizer

T, SIZE = 8, 224
NAMES = ("st_adapter", "zeroi2v", "aim")


def saved_bytes(model: VideoModel, clips: Tensor) -> int:
    """What the backward pass of `model` on `clips` is kept for, bytes."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = []  # or an address would serve twice

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(clips)
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    use_cpu(1)
    device = torch.device(given.device)
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, 1 thread"
    print(
        f"{title}, {given.precision}, {given.clips} clips, {given.share:.0%} of the patches dropped"
    )
    print("| method | step, all patches, s | step ratio | saved ratio |")
    print("| --- | --- | --- | --- |")
    for name in NAMES:
        vit = timm.create_model("vit_base_patch16_224", num_classes=0)
        model = build_method(name, vit, 400, T, METHODS[name].Config()).to(device).train()
        model.clip_keys.now = torch.tensor(
            [lowbias32(i) for i in range(given.clips)], device=device
        )
        config = TrainConfig(epochs=1, batch_size=given.clips, warmup_epochs=0)
        optimizer = make_optimizer(model, config, device)
        clips = torch.randn(given.clips, 3, T, SIZE, SIZE, device=device)
        labels = torch.zeros(given.clips, dtype=torch.long, device=device)
        cast = torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16")
        times: dict[float, list[float]] = {0.0: [], given.share: []}
        saved = {}
        for share in times:
            model.patch_drop = PatchDrop(share) if share else None
            with cast:
                saved[share] = saved_bytes(model, clips)
        for _ in range(given.rounds + 1):
            for share, seconds in times.items():
                model.patch_drop = PatchDrop(share) if share else None
                start = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                with cast:
                    loss = F.cross_entropy(model(clips), labels)
                loss.backward()
                optimizer.step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        whole, half = (seconds[1:] for seconds in times.values())
        ratio = statistics.median(b / a for a, b in zip(whole, half, strict=True))
        memory = saved[given.share] / saved[0.0]
        print(
            f"| {name} | {statistics.median(whole):.2f} | {ratio:.2f} | {memory:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
