"""What a sample costs from the frame store and from the source; size, quality and memory of the store.

    python benchmarks/loader.py [VIDEO ...]

The videos become 10 s sources of 340 x 256 pixels at 30 frames/s (H.264, crf 23, x264's own key
frames), as Kinetics is commonly kept; without any, rendered clips serve. CPU time of this process, one
thread, medians over rounds in which all ways take their turn; ratios are of the medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import av
import numpy as np
import torch
import torchvision.transforms.v2 as T

from pipeline.stages import extract
from vidpipe.data.config import DataConfig, SamplingConfig, TransformConfig
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.sampling import train_indices
from vidpipe.video.config import ExtractConfig
from vidpipe.video.store import FrameStore

WIDTH, HEIGHT, FPS, SECONDS = 340, 256, 30, 10
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SAMPLINGS = {
    "dense 8 x 16": SamplingConfig(strategy="dense", num_frames=8, stride=16),
    "uniform 8": SamplingConfig(strategy="uniform", num_frames=8),
}
ROUNDS = 15


def frames_of(video: Path | None, seed: int) -> list[np.ndarray]:
    """FPS * SECONDS pictures; a shorter video runs to and fro."""
    if video is None:
        from vidpipe.video.config import SynthConfig
        from vidpipe.video.rendered import render_clip

        config = SynthConfig(size_px=(HEIGHT, WIDTH), duration_s=(SECONDS, SECONDS), fps=FPS)
        clip = torch.from_numpy(render_clip(config, "move_left", seed)).permute(0, 3, 1, 2)
        frames = list(T.functional.resize(clip, [HEIGHT, WIDTH]).permute(0, 2, 3, 1).numpy())
    else:
        with av.open(str(video)) as container:
            frames = [
                f.to_ndarray(width=WIDTH, height=HEIGHT, format="rgb24", interpolation="AREA")
                for _, f in zip(range(FPS * SECONDS), container.decode(video=0))
            ]
    there_and_back = frames + frames[::-1]
    return [there_and_back[i % len(there_and_back)] for i in range(FPS * SECONDS)]


def write_sources(root: Path, videos: list[Path | None]) -> None:
    for number, video in enumerate(videos):
        path = root / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.options = {"crf": "23"}
            for array in frames_of(video, number):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode(None))


def median_cpu(ways: dict[str, Callable[[int], Any]]) -> dict[str, float]:
    """Milliseconds of CPU a sample, of every way, in turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            begun = time.process_time()
            way(turn)
            if turn:  # the first one imports and opens
                spent[name].append(1e3 * (time.process_time() - begun))
    return {name: statistics.median(times) for name, times in spent.items()}


def normalised(frames: torch.Tensor) -> torch.Tensor:
    return T.functional.normalize(frames.permute(0, 3, 1, 2).float() / 255, MEAN, STD)


def training(sources: list[Path], stores: dict[str, FrameStore]) -> None:
    import decord

    crop = T.RandomResizedCrop(224, antialias=True)
    for label, sampling in SAMPLINGS.items():

        def from_source(turn: int, sampling: SamplingConfig = sampling) -> torch.Tensor:
            reader = decord.VideoReader(str(sources[turn % len(sources)]), num_threads=1)
            draws = np.random.default_rng(turn).random(8)
            indices = train_indices(len(reader), sampling, draws)
            return crop(normalised(torch.from_numpy(reader.get_batch(indices).asnumpy())))

        def from_all(turn: int, sampling: SamplingConfig = sampling) -> torch.Tensor:
            reader = decord.VideoReader(str(sources[turn % len(sources)]), num_threads=1)
            every = normalised(torch.from_numpy(reader.get_batch(range(len(reader))).asnumpy()))
            draws = np.random.default_rng(turn).random(8)
            return crop(every[train_indices(len(reader), sampling, draws)])

        def from_store(tier: str, sampling: SamplingConfig = sampling) -> Callable[[int], Any]:
            clips = Clips(stores[tier], "train", stores[tier].classes)
            data = TrainSet(clips, sampling, TransformConfig(size=224), 0)
            return lambda turn: data[turn, turn % len(clips)]

        cpu = median_cpu(
            {"decode all": from_all, "source": from_source}
            | {tier: from_store(tier) for tier in stores}
        )
        print(f"\ntraining sample, {label}: CPU ms   source / it   decode all / it")
        for name, ms in cpu.items():
            print(
                f"  {name:12} {ms:9.2f} {cpu['source'] / ms:13.1f} {cpu['decode all'] / ms:17.1f}"
            )


def views(stores: dict[str, FrameStore]) -> None:
    sampling = SAMPLINGS["uniform 8"]
    ways: dict[str, Callable[[int], Any]] = {}
    for tier, store in stores.items():
        clips = Clips(store, "train", store.classes)
        for crops in (1, 3):
            data = ViewSet(clips, sampling, TransformConfig(size=224), 1, crops)
            ways[f"{tier} {crops}"] = lambda turn, data=data: data[turn % len(data)]  # type: ignore[misc]
    cpu = median_cpu(ways)
    print("\ntest read, 8 frames: CPU ms of 1 view, of 3 views, ratio")
    for tier in stores:
        one, three = cpu[f"{tier} 1"], cpu[f"{tier} 3"]
        print(f"  {tier:12} {one:9.2f} {three:9.2f} {three / one:9.2f}")


def quality(sources: list[Path], stores: dict[str, FrameStore]) -> None:
    """Against the source's own pixels: the store's short side is the source's."""
    print("\nstore: bytes / source bytes, PSNR dB of RGB against the decoded source (worst clip)")
    source_bytes = sum(path.stat().st_size for path in sources)
    for tier, store in stores.items():
        ratios = []
        for clip in range(len(store)):
            path = next(p for p in sources if f"{p.parent.name}/{p.stem}" == store.rows.id[clip])
            with av.open(str(path)) as container:
                true = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
            error = np.mean(
                (store.read(clip, range(len(true))).astype(np.float32) - true.astype(np.float32))
                ** 2
            )
            ratios.append(10 * np.log10(255**2 / error))
        size, middle = store.rows["nbytes"].sum(), statistics.median(ratios)
        kib = size / store.rows.frames.sum() / 1024
        print(f"  {tier:12} {size / source_bytes:6.2f} {middle:9.1f} ({min(ratios):.1f})", end="")
        print(f"   {kib:.2f} KiB a frame")


def growth(root: str, reader: str, opens: int, answer: Any) -> None:
    import psutil

    store, rng = FrameStore(root, reader=reader), np.random.default_rng(0)
    me = psutil.Process()

    def read(count: int) -> int:
        for _ in range(count):
            clip = int(rng.integers(len(store)))
            store.read(clip, np.sort(rng.integers(store.num_frames(clip), size=8)).tolist())
        return int(me.memory_info().rss)

    start = read(200)  # allocator and caches fill
    answer.put((read(opens) - start) / opens / 1024)


def memory(stores: dict[str, FrameStore], opens: int, runs: int) -> None:
    print(f"\nRSS growth over {opens} clips opened, KiB a clip, worst of {runs} runs")
    context = multiprocessing.get_context("spawn")
    for tier, store in stores.items():
        found = []
        for _ in range(runs):
            answer = context.Queue()
            process = context.Process(
                target=growth, args=(str(store.root), store.reader, opens, answer)
            )
            process.start()
            found.append(answer.get())
            process.join()
        print(f"  {tier:12} {max(found):6.2f}   median {statistics.median(found):6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--opens", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--gop", type=int, default=ExtractConfig.model_fields["gop"].default)
    parser.add_argument("--crf", type=int, default=ExtractConfig.model_fields["crf"].default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "videos"
        root.mkdir()
        write_sources(root, options.videos or [None] * 6)
        sources = sorted(root.rglob("*.mp4"))
        stores = {}
        for tier in ("compact", "fast"):
            config = ExtractConfig(
                short_side=HEIGHT,
                tier=tier,
                gop=options.gop,
                crf=options.crf,  # type: ignore[arg-type]
            )
            data = DataConfig(root=str(root), val_fraction=0.01)
            extract.run(data, config, Path(folder) / tier)
            stores[tier] = FrameStore(Path(folder) / tier)
        stores["by decord"] = FrameStore(Path(folder) / "compact", reader="decord")
        training(sources, stores)
        views(stores)
        quality(sources, stores)
        memory(stores, options.opens, options.runs)


if __name__ == "__main__":
    main()
