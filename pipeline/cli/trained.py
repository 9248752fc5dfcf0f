"""Commands that use trained models: predict, demo, explain, compare, splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Boxes, ClassName, Merged, Method, Run, WhichClips

HUB = "hf://"


def _existing(models: list[str]) -> list[str]:
    for text in models:
        if not text.startswith(HUB) and not Path(text).is_dir():
            raise typer.BadParameter(f"{text}: no such folder")
    return models


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, globs, URLs, list.txt or @list of such lines; - reads lines."
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        callback=_existing,
        help="Adapter or package folder, or hf://OWNER/NAME@REVISION. Repeatable: one backbone is "
        "loaded once.",
    ),
]
RayData = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Ray Data on this cluster: auto, local or host:port; none: never. Default: "
        "RAY_ADDRESS, or local for more than --ray-above inputs.",
    ),
]
RayAbove = Annotated[int, typer.Option(min=1, help="Inputs.")]
Weights = Annotated[
    str | None,
    typer.Option(help="The adapters' backbone, where it is not at the path they record."),
]
Frames = Annotated[
    Path | None,
    typer.Option(
        "--params", help="Take extract.short_side and fps from here, not from the model's folder."
    ),
]
Timeout = Annotated[
    float, typer.Option(min=1, help="Seconds a decoder may be silent before it is replaced.")
]
SpatialCrops = Annotated[int, typer.Option(help="1 (centre) or 3 (along the long side).")]
TemporalClips = Annotated[int, typer.Option(min=1, help="Clips of a video; dense sampling only.")]
EVALUATION = (
    "METHOD evaluated here, FOLDER:METHOD of another --out, an evaluation folder, "
    "or an MLflow run id"
)


def model_folders(models: Sequence[str], weights: str | None) -> tuple[Path, ...]:
    """Each model's folder; those of the hub are fetched."""
    if not any(text.startswith(HUB) for text in models):
        return tuple(Path(text) for text in models)
    from vidpipe.trained.hub import fetch

    return tuple(fetch(t, weights)[0] if t.startswith(HUB) else Path(t) for t in models)


def predict(
    model: Models,
    inputs: Inputs = None,
    live: Annotated[
        str | None,
        typer.Option(
            help="In place of inputs: rtsp://..., http, tcp or udp, webcam:0, a file, or - for a "
            "stream on standard input. JSON lines until Ctrl-C; --step: default 1 second."
        ),
    ] = None,
    weights: Weights = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 5,
    form: Annotated[
        str | None,
        typer.Option("--format", help="table, jsonl or parquet; default: by --out, else table."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    window: Annotated[
        float | None, typer.Option(help="Seconds: predict by sliding window.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Seconds between windows; default: --window.")
    ] = None,
    temporal_clips: TemporalClips = 1,
    spatial_crops: SpatialCrops = 1,
    params: Frames = None,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds a decoder may be silent before it is replaced: 300; a stream before it is "
            "opened anew: 10.",
        ),
    ] = None,
    smooth: Annotated[int, typer.Option(min=1, help="--live, --timeline: windows to average.")] = 1,
    give_up: Annotated[
        float | None, typer.Option(min=1, help="--live: end after seconds without a picture.")
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one video.")] = 4096,
    ray: RayData = None,
    ray_above: RayAbove = 50_000,
    *,
    boxes: Boxes,
    merged: Merged,
) -> None:
    """Classify raw videos, where damaged ones are reported and skipped; or a live stream."""
    from vidpipe.errors import VidpipeError

    if bool(inputs) == (live is not None):
        raise VidpipeError("predict: expected inputs or --live SOURCE, one of them")
    if live is not None and (out is not None or form not in (None, "jsonl")):
        raise VidpipeError("--live: writes JSON lines to standard output; no --out, --format")
    from pipeline.tools import predict as stage

    job = stage.Job(
        folders=model_folders(model, weights),
        weights=weights,
        temporal_clips=temporal_clips,
        spatial_crops=spatial_crops,
        window_s=window,
        step_s=step,
        params=params,
        workers=workers,
        timeout_s=timeout or 300,
        max_mb=max_mb,
    )
    if live is not None:
        from pipeline.tools import predict_live

        watched = predict_live.Live(live, smooth, give_up, timeout or predict_live.STALL_S)
        return predict_live.run(job, watched, top)
    if boxes.given:
        from pipeline.tools import predict_people

        return predict_people.run(job, inputs or [], boxes.who(), top=top, form=form, out=out)
    if merged.timeline:
        from pipeline.tools import predict_timeline

        options = (merged.threshold, merged.min_length, merged.rate)
        how = predict_timeline.Timeline(smooth, *options)
        return predict_timeline.run(job, inputs or [], how, form=form, out=out)
    stage.run(job, inputs or [], top=top, form=form, out=out, ray=ray, ray_above=ray_above)


def embed(
    model: Models,
    inputs: Inputs = None,
    *,
    store: Annotated[
        Path | None, typer.Option(help="In place of inputs: a frame store, such as data/store.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A .parquet file, or a folder for safetensors shards.")
    ] = Path("features.parquet"),
    frames: Annotated[
        bool, typer.Option("--frames", help="Also a feature of each sampled frame.")
    ] = False,
    weights: Weights = None,
    window: Annotated[float | None, typer.Option(help="Seconds: by sliding window.")] = None,
    step: Annotated[
        float | None, typer.Option(help="Seconds between windows; default: --window.")
    ] = None,
    temporal_clips: TemporalClips = 1,
    spatial_crops: SpatialCrops = 1,
    params: Frames = None,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 2,
    timeout: Timeout = 300,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one video.")] = 4096,
    ray: RayData = None,
    ray_above: RayAbove = 50_000,
) -> None:
    """Write the features of videos, or of the frame store's clips: to search, cluster, localise."""
    from vidpipe.errors import VidpipeError

    if bool(inputs) == (store is not None):
        raise VidpipeError("embed: expected inputs or --store FOLDER, one of them")
    if store is not None and window is not None:
        raise VidpipeError("--window: of raw videos; a clip of --store is one")
    from pipeline.tools import embed as tool

    job = tool.EmbedJob(
        folders=model_folders(model, weights),
        weights=weights,
        temporal_clips=temporal_clips,
        spatial_crops=spatial_crops,
        window_s=window,
        step_s=step,
        params=params,
        workers=workers,
        timeout_s=timeout,
        max_mb=max_mb,
        frames=frames,
    )
    tool.run(job, inputs or [], out, store=store, ray=ray, ray_above=ray_above)


def drift(
    model: Models,
    inputs: Annotated[
        list[str], typer.Argument(help="New videos: files, folders, globs, list.txt or @list.")
    ],
    *,
    store: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Frame store of the reference.")
    ] = Path("data/store"),
    split: Annotated[
        str, typer.Option(help="Of the store; of clips it was trained on a model is too sure.")
    ] = "val",
    videos: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="The store's own videos, to compare sizes and rates."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The report's name; .html, .md and .json are added.")
    ] = Path("results/drift"),
    weights: Weights = None,
    workers: Annotated[int, typer.Option(min=1, help="Decoding processes.")] = 2,
    timeout: Timeout = 300,
) -> None:
    """Compare new videos with a data set: features, confidence, sizes and rates."""
    from pipeline.tools import drift as tool
    from pipeline.tools.embed import EmbedJob

    job = EmbedJob(
        folders=model_folders(model, weights), weights=weights, workers=workers, timeout_s=timeout
    )
    tool.run(job, inputs, store, split, videos, out)


def demo(
    model: Models,
    weights: Weights = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1.")] = 7860,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one upload.")] = 64,
    timeout: Timeout = 60,
    params: Frames = None,
    window: Annotated[
        float | None,
        typer.Option(help="Seconds of the timeline's windows; default: the model's, or 2."),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="Seconds between windows, by default a quarter of one; between people: 1."
        ),
    ] = None,
    smooth: Annotated[int, typer.Option(min=1, help="Windows of the timeline to average.")] = 1,
    *,
    boxes: Boxes,
) -> None:
    """Open a local web page: drop a clip on a model, see what it says and looks at, and when."""
    from pipeline.tools.demo import run as serve
    from pipeline.tools.predict import Job

    job = Job(
        folders=model_folders(model, weights),
        weights=weights,
        window_s=window,
        step_s=step,
        params=params,
        workers=1,
        timeout_s=timeout,
        max_mb=max_mb,
    )
    serve(job, port, boxes.who(), smooth)


def explain(
    *,
    method: Method = None,
    clips: Annotated[int, typer.Option(min=1, max=200, help="How many clips.")] = 4,
    class_name: ClassName = None,
    split: Annotated[str, typer.Option(help="train or val, seen as in testing.")] = "val",
    grad_cam: Annotated[
        bool, typer.Option("--grad-cam", help="Also Grad-CAM (needs vidpipe[explain]).")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="Grad-CAM of this class; default: the predicted one.")
    ] = None,
    block: Annotated[int, typer.Option(help="Whose attention; -1 is the last block.")] = -1,
    seed: WhichClips = 0,
    given: Run,
) -> None:
    """Draw where a trained model looks: spatial and temporal heads, and Grad-CAM."""
    from vidpipe.errors import VidpipeError

    if split not in ("train", "val"):
        raise VidpipeError(f"--split {split}: expected train or val")
    if target is not None and not grad_cam:
        raise VidpipeError(f"--target {target}: only Grad-CAM has one; add --grad-cam")
    params = given.read()
    method = given.choose_method(method, params)
    from pipeline.tools import explain as tool

    request = tool.Request(clips, class_name, split, grad_cam, target, block, seed)
    for path in tool.run(params, method, given.workspace, request):
        typer.echo(str(path))


def compare(
    *,
    run_a: Annotated[str, typer.Argument(help=EVALUATION)],
    run_b: Annotated[str, typer.Argument(help="As RUN_A.")],
    given: Run,
) -> None:
    """What run B gains over run A on the same clips, overall and by class."""
    from pipeline.tools import compare as tool

    tool.compare(run_a, run_b, lambda: given.read().tracking, given.out)


def splits(
    *,
    runs: Annotated[list[str], typer.Argument(help=f"One of each split. {EVALUATION}.")],
    given: Run,
) -> None:
    """The mean over the splits of UCF101 or HMDB51, each trained and evaluated on its own."""
    from pipeline.tools import compare as tool

    tool.splits(runs, lambda: given.read().tracking, given.out)
