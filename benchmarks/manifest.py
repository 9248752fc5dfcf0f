"""What a listing of Kinetics' size costs before a frame is decoded: seconds and peak memory a step.

    python benchmarks/manifest.py [CLIPS]

Empty files and invented annotations in a temporary folder. Each step runs in a process of its own,
since the peak of a process never falls again; `read back` is what every training process pays.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CLASSES = 400


def make(root: Path, clips: int) -> None:
    """Kinetics-400's own files: train.csv, val.csv and an empty video a row."""
    header = "label,youtube_id,time_start,time_end,split\n"
    for split in ("train", "val"):
        for c in range(CLASSES):
            (root / split / f"class_{c}").mkdir(parents=True)
        numbers = [i for i in range(clips) if (i % 12 == 0) == (split == "val")]
        rows = [f"class {i % CLASSES},{i:011d},10,20,{split}\n" for i in numbers]
        (root / f"{split}.csv").write_text(header + "".join(rows))
        for i in numbers:
            (root / split / f"class_{i % CLASSES}" / f"{i:011d}_000010_000020.mp4").touch()
    lines = (f"{s}/class_{i % CLASSES}/{i:011d}_000010_000020.mp4" for i, s in _splits(clips))
    table = (f"{path},class {i % CLASSES}\n" for i, path in enumerate(lines))
    (root / "index.csv").write_text("path,label\n" + "".join(table))


def _splits(clips: int) -> list[tuple[int, str]]:
    return [(i, "val" if i % 12 == 0 else "train") for i in range(clips)]


def list_layout(root: Path, layout: str, annotations: str | None = None) -> None:
    from vidpipe.data.config import DataConfig
    from vidpipe.data.layouts import list_items

    timed(
        f"list, layout {layout}",
        lambda: list_items(
            DataConfig(root=str(root), layout=layout, annotations=annotations)  # type: ignore[arg-type]
        ),
    )


def build(root: Path, clips: int) -> None:
    """Rows as extraction makes them, without the decoding."""
    from vidpipe.video.store import write_manifest

    names = tuple(f"class {c}" for c in range(CLASSES))

    def run() -> None:
        rows = []
        for i, split in _splits(clips):
            path = f"{split}/class_{i % CLASSES}/{i:011d}_000010_000020"
            rows.append(
                {
                    **{"id": path, "path": f"{path}.mp4", "label": names[i % CLASSES]},
                    **{"split": split, "status": "ok", "reason": "", "detail": ""},
                    **{"frames": 300, "fps": 30.0, "width": 340, "height": 256},
                    **{"sha256": f"{i:064x}", "source_bytes": 10**6, "shard": i // 500},
                    **{"offset": i % 500 * 400_000, "nbytes": 400_000},
                }
            )
        write_manifest(root / "store", rows, names)

    timed("build and write the manifest", run)
    size = (root / "store" / "manifest.parquet").stat().st_size
    print(f"  {size / 1e6:.1f} MB on disk", flush=True)


def use(root: Path) -> None:
    import numpy as np

    from vidpipe.data.config import SubsetConfig
    from vidpipe.data.stats import summarise
    from vidpipe.data.subset import subset_rows
    from vidpipe.video.store import read_manifest

    manifest = timed("read back", lambda: read_manifest(root / "store"))
    rows = manifest.rows

    def keep() -> object:
        return rows[(rows.status == "ok") & (rows.split == "train")].reset_index(drop=True)

    train = timed("filter the training clips", keep)
    ids, labels = train.id.tolist(), train.label.tolist()
    timed("few-shot, 16 a class", lambda: subset_rows(ids, labels, SubsetConfig(per_class=16)))
    timed("a tenth of each class", lambda: subset_rows(ids, labels, SubsetConfig(fraction=0.1)))
    timed("shuffle an epoch", lambda: np.random.default_rng([0, 1]).permutation(len(train)))
    timed("statistics", lambda: summarise(manifest))


def timed(name: str, run: Callable[[], object]):  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"{name:32} {seconds:7.2f} s   peak {peak / 2**20:6.0f} MiB", flush=True)
    return result


def main() -> None:
    clips = int(sys.argv[1]) if len(sys.argv) > 1 else 240_000
    print(
        f"{clips:,} clips; {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{platform.system()}, Python {platform.python_version()}"
    )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, clips)
        steps: list[tuple[Callable[..., None], tuple[object, ...]]] = [
            (list_layout, (root, "kinetics")),
            (list_layout, (root, "table", "index.csv")),
            (list_layout, (root / "train", "folders")),
            (build, (root, clips)),
            (use, (root,)),
        ]
        for step, arguments in steps:
            process = context.Process(target=step, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
