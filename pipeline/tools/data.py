"""`vidpipe data`: what the store holds, and what a model sees of it."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from pipeline.infra.console import output
from pipeline.infra.workspace import Workspace
from pipeline.tools.choose_clips import choose_clips
from vidpipe.backbones.input_card import completed
from vidpipe.data.dataset import Clips, TrainSet, ViewSet
from vidpipe.data.labels import join_labels
from vidpipe.data.stats import class_counts, summarise, usable
from vidpipe.files import write_json
from vidpipe.params import Params
from vidpipe.video.store import FrameStore, Manifest, read_manifest
from vidpipe.viz.data import plot_contact_sheet, plot_data_stats

LISTED = 10
"""Classes to print at either end where there are many."""


def stats(place: Workspace, as_json: bool) -> None:
    """Clips a class and split, balance, durations, sizes, bytes, and what was quarantined."""
    manifest = read_manifest(place.store)
    summary = summarise(manifest)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    _print(summary, manifest)
    folder = place.results / "data"
    write_json(folder / "stats.json", summary)
    clips = sum(summary["clips"].values())
    title = f"{clips} clips of {summary['classes']} classes, {manifest.tier} store"
    plot_data_stats(class_counts(manifest), usable(manifest.rows), title, folder / "stats.png")
    print(f"{folder / 'stats.json'}\n{folder / 'stats.png'}")


def _print(summary: dict[str, Any], manifest: Manifest) -> None:
    console = output()
    names = sorted(summary["per_class"], key=lambda n: (-sum(summary["per_class"][n].values()), n))
    table = Table("class", title=f"{summary['classes']} classes")
    for column in ("train", "val"):
        table.add_column(column, justify="right")
    hidden = len(names) - 2 * LISTED
    for i, name in enumerate(names):
        if hidden > LISTED and LISTED <= i < len(names) - LISTED:
            if i == LISTED:
                table.add_row(f"... {hidden} more ...", "", "")
            continue
        table.add_row(name, *(f"{n:,}" for n in summary["per_class"][name].values()))
    table.add_section()
    table.add_row("all", *(f"{summary['clips'][split]:,}" for split in ("train", "val")))
    console.print(table)

    table = Table("", "min", "median", "max", title="clips of the store")
    shown = {"duration_s": "s", "frames": "", "fps": "", "width": "px", "height": "px"}
    for name, unit in shown.items():
        values = (summary[name][key] for key in ("min", "median", "max"))
        cells = ("-" if v is None else f"{v:.4g} {unit}".strip() for v in values)
        table.add_row(name.removesuffix("_s"), *cells)
    console.print(table)

    balance = summary["balance"]
    ratio = "-" if balance["ratio"] is None else f"{balance['ratio']:.3g}"
    console.print(
        f"balance of training clips: most {balance['most']['class']} "
        f"({balance['most']['clips']:,}), least {balance['least']['class']} "
        f"({balance['least']['clips']:,}), ratio {ratio}"
    )
    if empty := balance["without_training_clips"]:
        console.print(f"{len(empty)} classes have no training clip, such as {empty[0]}")
    share = summary["store_to_source"]
    console.print(
        f"{summary['duration_s']['total'] / 3600:.3g} hours; "
        f"source {summary['source_bytes'] / 1e6:,.4g} MB, "
        f"{manifest.tier} store {summary['store_bytes'] / 1e6:,.4g} MB"
        + (f" ({share:.3g} of it)" if share is not None else "")
    )
    reasons = ", ".join(f"{reason} {n}" for reason, n in summary["quarantined"].items())
    console.print(f"quarantined: {reasons or 'none'}")


def show(
    resolved: Params,
    place: Workspace,
    *,
    clips: int,
    split: str,
    class_name: str | None,
    epoch: int,
    seed: int,
) -> Path:
    """The picture of some clips as the model gets them, but for normalisation."""
    store = FrameStore(place.store)
    source = Clips(store, split, store.classes)
    chosen = choose_clips(source, class_name, clips, seed, split)
    transform = completed(resolved.transform, resolved.backbone)
    resolved = resolved.model_copy(update={"transform": transform})
    rows = [row for i in chosen for row in _strips(resolved, source, split, i, epoch)]
    path = place.results / "data" / f"clips-{split}.png"
    what = f"training clips, epoch {epoch}" if split == "train" else "test views"
    sampling = resolved.sampling
    plot_contact_sheet(rows, f"{what}: {sampling.strategy}, {sampling.num_frames} frames", path)
    return path


def _strips(
    params: Params, clips: Clips, split: str, i: int, epoch: int
) -> list[tuple[str, Tensor]]:
    """(label, (T, 3, h, w)) of one clip: one strip in training, one a view in validation."""
    if split == "train":
        train = TrainSet(clips, params.sampling, params.transform, params.train.seed)
        sample = train[epoch, i]
        return [(_caption(clips, sample), sample["video"])]
    views = ViewSet(
        clips,
        params.sampling,
        params.transform,
        params.evaluate.temporal_clips,
        params.evaluate.spatial_crops,
    )
    sample = views[i]
    number = len(sample["video"])
    return [
        (_caption(clips, sample) + (f"\nview {v} of {number}" if number > 1 else ""), video)
        for v, video in enumerate(sample["video"], 1)
    ]


def _caption(clips: Clips, sample: dict[str, Any]) -> str:
    """Label and id of the sample itself: a flip may have changed the label, a bad read the clip."""
    label, id_ = sample["label"], clips.ids[sample["index"]]
    own = [label] if isinstance(label, int) else label.nonzero()[:, 0].tolist()
    name = join_labels(clips.store.classes[i] for i in own) or "none of the classes"
    if len(id_) > 36 and "/" in id_:  # the folder is mostly the class once more
        id_ = ".../" + id_.rpartition("/")[2]
    return "\n".join([*textwrap.wrap(name, 32), *textwrap.wrap(id_, 36)])
