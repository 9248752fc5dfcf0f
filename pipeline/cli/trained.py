"""Commands that use trained models: predict, demo, explain, compare, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ClassName, Method, Run, WhichClips

Models = Annotated[
    list[Path],
    typer.Option(
        "--model",
        exists=True,
        file_okay=False,
        help="Adapter or package folder. Repeatable: one backbone is loaded once.",
    ),
]
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


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, URLs, list.txt or @list of such lines; - reads lines."
        ),
    ],
    model: Models,
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
    timeout: Timeout = 300,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one video.")] = 4096,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Ray Data on this cluster: auto, local or host:port; none: never. Default: "
            "RAY_ADDRESS, or local for more than --ray-above inputs."
        ),
    ] = None,
    ray_above: Annotated[int, typer.Option(min=1, help="Inputs.")] = 50_000,
) -> None:
    """Classify raw videos; damaged ones are reported and skipped."""
    from pipeline.tools import predict as stage

    job = stage.Job(
        folders=tuple(model),
        weights=weights,
        temporal_clips=temporal_clips,
        spatial_crops=spatial_crops,
        window_s=window,
        step_s=step,
        params=params,
        workers=workers,
        timeout_s=timeout,
        max_mb=max_mb,
    )
    stage.run(job, inputs, top=top, form=form, out=out, ray=ray, ray_above=ray_above)


def demo(
    model: Models,
    weights: Weights = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1.")] = 7860,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of one upload.")] = 64,
    timeout: Timeout = 60,
    params: Frames = None,
) -> None:
    """Open a local web page: drop a clip on a model, see what it says and looks at."""
    from pipeline.tools.demo import run as serve
    from pipeline.tools.predict import Job

    job = Job(
        folders=tuple(model),
        weights=weights,
        params=params,
        workers=1,
        timeout_s=timeout,
        max_mb=max_mb,
    )
    serve(job, port)


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
