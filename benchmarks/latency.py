"""What a video model costs at inference beside the plain image ViT on the same frames.

    python benchmarks/latency.py [--model vit_base_patch16_224] [--precisions fp32,bf16] [--batches 1,8]
                                 [--device cuda] [--no-onnx] [--minutes 9]

Random weights, 8 frames of the model's size, normalised input on the device, inference mode, one
process. A round times every model once, one after the other, so that a machine that slows down slows
all of them; the plain ViT and the merged ZeroI2V stand beside each other and take turns in going first.
Ratios are medians over rounds of (model / plain ViT of that round), with their quartiles. The time is
shared out among the settings: larger batches get fewer rounds. GPU times are whole calls, synchronised.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import Tensor, nn

from vidpipe.backbones.ops import fold_frames
from vidpipe.cpu import use_cpu
from vidpipe.methods.base import VideoModel
from vidpipe.methods.registry import METHODS, build_method

PLAIN, MERGED = "plain ViT", "zeroi2v, merged"
METHODS_BESIDE = ("zeroi2v", "lora", "st_adapter", "aim")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES = 400
Run = Callable[[Tensor], object]


class Plain(nn.Module):
    """The image model over the frames of a clip, as if each were a picture."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, clip: Tensor) -> Tensor:
        features: Tensor = self.vit(fold_frames(clip))
        return features


def models(name: str, frames: int) -> dict[str, nn.Module]:
    """By their names in the table; all but the merged ones share one set of image weights."""
    vit = timm.create_model(name, num_classes=0).eval()
    built: dict[str, nn.Module] = {PLAIN: Plain(vit)}
    for method in METHODS_BESIDE:
        model = build_method(method, vit, CLASSES, frames, METHODS[method].Config())
        with torch.no_grad():
            for tensor in model.adapter_state().values():
                tensor += 0.01 * torch.randn_like(tensor)
        if model.not_mergeable is None:
            merged: VideoModel = model.merge()
            built[f"{method}, merged"] = merged
        built[f"{method}, adapters" if model.not_mergeable is None else method] = model
    order = [PLAIN, MERGED, *(n for n in built if n not in (PLAIN, MERGED))]
    return {n: built[n].eval() for n in order}


def onnx_session(model: nn.Module, clip: Tensor, threads: int, folder: str) -> Run:
    import onnxruntime

    path = Path(folder) / "model.onnx"
    batch = {0: torch.export.Dim("batch", min=1)}
    example = torch.cat([clip[:1]] * 2)
    program = torch.export.export(model, (example,), dynamic_shapes=(batch,), strict=False)
    torch.onnx.export(program, f=path, input_names=["clip"], opset_version=23, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"clip": x.numpy()})


def seconds(run: Run, clip: Tensor) -> float:
    if clip.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(clip)
    if clip.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(runs: dict[str, Run], clip: Tensor, budget: float) -> dict[str, list[float]]:
    """Seconds of each, a number a round: as many rounds as fit into `budget` seconds, 3 to 200."""
    names = list(runs)
    warm = sum(seconds(runs[name], clip) for name in names)
    if clip.is_cuda:  # the first calls compile and choose kernels
        warm = sum(seconds(runs[name], clip) for name in names for _ in range(3)) / 3
    rounds = max(3, min(200, int((budget - warm) / warm)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = [MERGED, PLAIN] if turn % 2 else [PLAIN, MERGED]
        for name in (*first, *names[2:]):
            times[name].append(seconds(runs[name], clip))
    return times


def cell(times: dict[str, list[float]], name: str) -> str:
    if name not in times:
        return "-"
    ratios = sorted(own / plain for own, plain in zip(times[name], times[PLAIN], strict=True))
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    middle, own = statistics.median(ratios), statistics.median(times[name]) * 1e3
    digits = 0 if own >= 100 else 1 if own >= 10 else 2
    return f"{own:.{digits}f} ms, {middle:.3f} ({low:.3f} to {high:.3f})"


def machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        known = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        where = f"{known[0] if known else platform.processor()}, {threads} threads"
    return f"{where}; torch {torch.__version__}, timm {timm.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--minutes", type=float, default=9.0, help="for all settings together")
    parser.add_argument("--no-onnx", action="store_true")
    given = parser.parse_args()
    use_cpu(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    # fp32 first: the models are cast in place.
    precisions = sorted(given.precisions.split(","), key=lambda name: name != "fp32")
    settings = [(p, int(b)) for p in precisions for b in given.batches.split(",")]
    built = models(given.model, given.frames)
    zoo = timm.get_pretrained_cfg(given.model)
    assert zoo is not None, given.model
    size = zoo.input_size[-1]
    clips = torch.randn(max(b for _, b in settings), 3, given.frames, size, size)
    sessions: dict[str, Run] = {}
    with TemporaryDirectory() as folder:
        if not given.no_onnx and device.type == "cpu":
            sessions[f"{MERGED}, onnxruntime"] = onnx_session(
                built[MERGED], clips[:1], given.threads, folder
            )
    columns = {}
    for precision in precisions:
        runs: dict[str, Run] = dict(built)
        for model in built.values():
            model.to(device, DTYPES[precision])
        if precision == "fp32":
            runs |= sessions
        for batch in [b for p, b in settings if p == precision]:
            clip = clips[:batch].to(device, DTYPES[precision])
            with torch.inference_mode():
                columns[precision, batch] = measure(runs, clip, given.minutes * 60 / len(settings))
    print(f"{given.model}, {given.frames} frames of {size} px; {machine(device, given.threads)}")
    print("Median time of a call; ratio to the plain ViT, median (quartiles) over rounds.\n")
    heads = [f"{p}, batch {b} ({len(t[PLAIN])} rounds)" for (p, b), t in columns.items()]
    print("| model | " + " | ".join(heads) + " |")
    print("| --- " * (len(heads) + 1) + "|")
    for name in [*built, *sessions]:
        print(f"| {name} | " + " | ".join(cell(t, name) for t in columns.values()) + " |")


if __name__ == "__main__":
    main()
