"""The `vidpipe` command: each command is one stage or one tool.

Nothing heavy is imported at the top: `vidpipe --help` must answer at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.data import app as data_app
from pipeline.cli.options import HERE, PARAMS, DataRoot, Method, Out, ParamsFile, Recipe, Set
from pipeline.cli.options import choose_method as _method
from pipeline.cli.options import read_params as _params
from pipeline.cli.options import warn_of_start as _warn_of_start
from pipeline.cli.options import workspace as _workspace
from pipeline.cli.predict import demo, predict
from pipeline.cli.tune import tune
from pipeline.tools.compare import compare, splits
from pipeline.tools.explain import explain

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace

app = typer.Typer(
    help="Turn a frozen image transformer into a video action classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(data_app, name="data")
app.command()(tune)
app.command()(compare)
app.command()(splits)
app.command()(predict)
app.command()(demo)
app.command()(explain)


@app.command()
def synth(params: ParamsFile = PARAMS, set: Set = None, out: Out = HERE) -> None:
    """Render the embedded data set: clips in pairs that are each other's time reversal."""
    from pipeline.stages import synth as stage

    stage.run(_params(params, None, None, set).synth, _workspace(out).synth)


@app.command()
def extract(
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Decode and verify videos into the frame store; quarantine what is damaged."""
    from pipeline.stages import extract as stage
    from vidpipe.files import write_json

    resolved, workspace = _params(params, recipe, data_root, set), _workspace(out)
    counts = stage.run(resolved.data, resolved.extract, workspace.store)
    write_json(workspace.results / "extract.json", counts)


@app.command()
def train(
    method: Method = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, time a few steps, write nothing.")
    ] = False,
) -> None:
    """Fine-tune one method's adapters on the frozen backbone.

    With --data-root, a frame store that is not there yet is made first.
    """
    resolved = _params(params, recipe, data_root, set)
    method = _method(method, recipe, resolved)
    _warn_of_start(recipe, resolved)
    if dry_run:
        from pipeline.tools.dry_run import run as show

        show(resolved, method, _workspace(out))
        return
    if data_root is not None and resolved.data.store is None and not _workspace(out).store.exists():
        extract(params, recipe, data_root, set, out)
    from pipeline.stages import train as stage

    stage.run(resolved, method, _workspace(out))
    given = [("--method", method), ("--params", params), ("--recipe", recipe)]
    given += [("--data-root", data_root), *(("--set", text) for text in set or []), ("--out", out)]
    parts = [str(x) for pair in given if pair[1] not in (None, PARAMS, HERE) for x in pair]
    typer.echo(f"next: vidpipe evaluate {shlex.join(parts)}", err=True)


@app.command()
def evaluate(
    method: Method = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Multi-view accuracy of a trained method on the validation clips."""
    resolved = _params(params, recipe, data_root, set)
    method = _method(method, recipe, resolved)
    from pipeline.stages import evaluate as stage

    for name, value in stage.run(resolved, method, _workspace(out)).items():
        typer.echo(f"{name} {value:.4g}")


@app.command()
def export(
    method: Method = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Merge what can be merged, prove it on real clips, and package the model."""
    resolved = _params(params, recipe, data_root, set)
    method = _method(method, recipe, resolved)
    from pipeline.stages import export as stage

    stage.run(resolved, method, _workspace(out))


@app.command()
def report(
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; default: every method evaluated here.")
    ] = None,
    out: Out = HERE,
) -> None:
    """One table and one picture over all methods."""
    from pipeline.stages import report as stage
    from vidpipe.errors import VidpipeError

    workspace = _workspace(out)
    names = methods.split(",") if methods else _evaluated(workspace)
    if not names:
        raise VidpipeError(f"{workspace.results}: nothing evaluated yet; run `vidpipe evaluate`")
    stage.run(names, workspace)


def _evaluated(workspace: Workspace) -> list[str]:
    from vidpipe.methods.registry import METHODS

    return [name for name in METHODS if workspace.result(name, "eval.json").exists()]


@app.command()
def run(
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")],
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Every stage from extract to report, one after the other, without DVC."""
    resolved, workspace = _params(params, recipe, data_root, set), _workspace(out)
    names = methods.split(",")
    for name in names:
        resolved.method(name)
    from pipeline.stages import evaluate, export, train
    from pipeline.stages import report as report_stage

    extract(params, recipe, data_root, set, out)
    for name in names:
        train.run(resolved, name, workspace)
        evaluate.run(resolved, name, workspace)
        export.run(resolved, name, workspace)
    report_stage.run(names, workspace)


@app.command()
def profile(
    method: Annotated[
        str | None, typer.Option(help="A method; `vidpipe methods` lists them.")
    ] = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    set: Set = None,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 400,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    paper_tables: Annotated[
        bool, typer.Option("--paper-tables", help="Recompute every cost the papers print.")
    ] = False,
) -> None:
    """Parameters, GFLOPs and memory of a configuration, before anything is trained."""
    from vidpipe.errors import VidpipeError

    if paper_tables:
        from pipeline.tools.profile import paper_tables as recompute

        recompute(json)
        return
    if method is None:
        raise VidpipeError("profile: expected --method NAME or --paper-tables")
    resolved = _params(params, recipe, None, set)
    resolved.method(method)
    from pipeline.tools import profile as stage

    stage.run(resolved, method, classes, json)


@app.command(name="params")
def show_params(
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    write: Annotated[
        bool, typer.Option("--write", help="Change the file, keeping its comments.")
    ] = False,
) -> None:
    """Print the resolved parameters, or write overrides into the file."""
    import yaml

    resolved = _params(params, recipe, data_root, set)
    if write:
        from pipeline.infra.recipes import read_recipe, write_overlay
        from vidpipe.config.overlay import deep_merge, parse_override

        overlay: dict[str, Any] = read_recipe(recipe) if recipe else {}
        if data_root is not None:
            overlay = deep_merge(overlay, {"data": {"root": data_root}})
        for text in set or []:
            overlay = deep_merge(overlay, parse_override(text))
        write_overlay(params, overlay)
    else:
        typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)


@app.command()
def methods() -> None:
    """List the methods, what they are, and whether they have a form for Swins."""
    from vidpipe.methods.registry import METHODS, SWIN_METHODS

    for name, method in METHODS.items():
        doc = (method.__doc__ or "").strip() or (
            sys.modules[method.__module__].__doc__ or ""
        ).strip()
        swin = "ViT, Swin" if name in SWIN_METHODS else "ViT"
        typer.echo(f"{name:20} {swin:10} {doc.splitlines()[0]}")


@app.command()
def recipes(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the recipes: what they cost, and what the papers report for them."""
    from pipeline.tools.list_recipes import run as show

    show(json)


@app.command(name="fetch-weights")
def fetch_weights(
    name: Annotated[str, typer.Argument(help="Model name in the zoo.")],
    file: Annotated[Path, typer.Argument(help="Where to write the .safetensors file.")],
    source: Annotated[str, typer.Option(help="timm or open_clip.")] = "timm",
    tag: Annotated[str, typer.Option(help="Pretrained tag; empty: the default of timm.")] = "",
) -> None:
    """Download a backbone's weights into a local file, which DVC can track."""
    from pipeline.tools.fetch_weights import fetch

    typer.echo(fetch(source, name, tag, file))


@app.command(name="import-checkpoint")
def import_released(
    file: Annotated[Path, typer.Argument(help="What the authors' code saved.")],
    method: Annotated[str, typer.Option("--from", help="aim, st_adapter or zeroi2v.")],
    backbone: Annotated[str, typer.Option(help="Model name in the zoo.")],
    weights: Annotated[str, typer.Option(help="The backbone's weights: a local file, or hub:TAG.")],
    out: Annotated[Path, typer.Option(help="Adapter folder, such as models/aim/adapter.")],
    source: Annotated[str, typer.Option(help="timm or open_clip.")] = "timm",
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames a clip.")] = None,
    sampling: Annotated[str | None, typer.Option(help="uniform or dense.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Of dense sampling.")] = None,
    adapter_scale: Annotated[
        float | None, typer.Option(help="AIM and ZeroI2V: the config's adapter_scale.")
    ] = None,
    stdha: Annotated[
        list[str] | None, typer.Option(help="ZeroI2V's shifts: shift_div=12. Repeatable.")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Only checked: the backbone tells it.")] = None,
    size: Annotated[
        int | None, typer.Option(min=14, help="Input in pixels, where the file has no backbone.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line; default class_0, class_1, ...")
    ] = None,
) -> None:
    """Turn a checkpoint of the authors' released code into an adapter folder."""
    from pipeline.tools import import_checkpoint as released

    found = released.run(
        file,
        method,
        backbone={"source": source, "name": backbone, "weights": weights},
        options={
            "num_frames": num_frames,
            "strategy": sampling,
            "stride": stride,
            "adapter_scale": adapter_scale,
            "heads": heads,
            "size": size,
        },
        stdha=stdha or [],
        classes=classes,
        out=out,
    )
    for name, value in found.items():
        typer.echo(f"{name:20} {value}")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 1."""
    from pipeline.infra.stopping import Interrupted
    from vidpipe.errors import VidpipeError

    try:
        app()
    except VidpipeError as error:
        print(f"vidpipe: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"vidpipe: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("vidpipe: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
