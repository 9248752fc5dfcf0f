"""The stages of dvc.yaml as commands, and `vidpipe run`, which is all of them. Nothing heavy on top."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    HERE,
    PARAMS,
    DataRoot,
    Method,
    Out,
    ParamsFile,
    Recipe,
    Set,
    choose_method,
    read_params,
    warn_of_start,
    workspace,
)

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace


def synth(params: ParamsFile = PARAMS, set: Set = None, out: Out = HERE) -> None:
    """Render the embedded data set: clips in pairs that are each other's time reversal."""
    from pipeline.stages import synth as stage

    stage.run(read_params(params, None, None, set).synth, workspace(out).synth)


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

    resolved, place = read_params(params, recipe, data_root, set), workspace(out)
    counts = stage.run(resolved.data, resolved.extract, place.store)
    write_json(place.results / "extract.json", counts)


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
    resolved = read_params(params, recipe, data_root, set)
    method = choose_method(method, recipe, resolved)
    warn_of_start(recipe, resolved)
    if dry_run:
        from pipeline.tools.dry_run import run as show

        show(resolved, method, workspace(out))
        return
    if data_root is not None and resolved.data.store is None and not workspace(out).store.exists():
        extract(params, recipe, data_root, set, out)
    from pipeline.stages import train as stage

    stage.run(resolved, method, workspace(out))
    given = [("--method", method), ("--params", params), ("--recipe", recipe)]
    given += [("--data-root", data_root), *(("--set", text) for text in set or []), ("--out", out)]
    parts = [str(x) for pair in given if pair[1] not in (None, PARAMS, HERE) for x in pair]
    typer.echo(f"next: vidpipe evaluate {shlex.join(parts)}", err=True)


def evaluate(
    method: Method = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Multi-view accuracy of a trained method on the validation clips."""
    resolved = read_params(params, recipe, data_root, set)
    method = choose_method(method, recipe, resolved)
    from pipeline.stages import evaluate as stage

    for name, value in stage.run(resolved, method, workspace(out)).items():
        typer.echo(f"{name} {value:.4g}")


def export(
    method: Method = None,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Merge what can be merged, prove it on real clips, and package the model."""
    resolved = read_params(params, recipe, data_root, set)
    method = choose_method(method, recipe, resolved)
    from pipeline.stages import export as stage

    stage.run(resolved, method, workspace(out))


def report(
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; default: every method evaluated here.")
    ] = None,
    out: Out = HERE,
) -> None:
    """One table and one picture over all methods."""
    from pipeline.stages import report as stage
    from vidpipe.errors import VidpipeError

    place = workspace(out)
    names = methods.split(",") if methods else _evaluated(place)
    if not names:
        raise VidpipeError(f"{place.results}: nothing evaluated yet; run `vidpipe evaluate`")
    stage.run(names, place)


def _evaluated(place: Workspace) -> list[str]:
    from vidpipe.methods.registry import METHODS

    return [name for name in METHODS if place.result(name, "eval.json").exists()]


def run(
    methods: Annotated[str, typer.Option(help="Comma-separated methods.")],
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Every stage from extract to report, one after the other, without DVC."""
    resolved, place = read_params(params, recipe, data_root, set), workspace(out)
    names = methods.split(",")
    for name in names:
        resolved.method(name)
    from pipeline.stages import evaluate, export, train
    from pipeline.stages import report as report_stage

    extract(params, recipe, data_root, set, out)
    for name in names:
        train.run(resolved, name, place)
        evaluate.run(resolved, name, place)
        export.run(resolved, name, place)
    report_stage.run(names, place)
