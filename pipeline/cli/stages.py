"""Commands that run a stage of dvc.yaml each, and `vidpipe run`, which runs them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Method, Run

EMBEDDED = Path("data/synth")
"""`data.root` of the data set that `vidpipe synth` renders, below the folder of `--out`."""

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace
    from vidpipe.params import Params


def synth(given: Run) -> None:
    """Render the embedded data set: clips in pairs that are each other's time reversal."""
    params = given.read()
    from pipeline.stages import synth as stage

    found = stage.run(params.synth, given.workspace.synth)
    from pipeline.infra.console import console

    console.print(f"synth: {found['clips']} clips of {found['classes']} classes")


def extract(given: Run) -> None:
    """Decode and verify videos into the frame store; quarantine what is damaged."""
    params, workspace = given.read(), given.workspace
    from pipeline.stages import extract as stage
    from vidpipe.files import write_json

    counts = stage.run(params.data, params.extract, workspace.store)
    write_json(workspace.results / "extract.json", counts)
    from pipeline.infra.console import console

    console.print(f"extract: {counts['clips']} clips, {counts['quarantined']} left out")


def train(
    *,
    method: Method = None,
    given: Run,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, time a few steps, write nothing.")
    ] = False,
) -> None:
    """Fine-tune one method's adapters on the frozen backbone.

    With --data-root, a frame store that is not there yet is made first.
    """
    params, workspace = given.read(), given.workspace
    method = given.choose_method(method, params)
    _warn_of_start(given.recipe, params)
    if dry_run:
        from pipeline.tools.dry_run import run as show

        show(params, method, workspace)
        return
    if given.data_root is not None and params.data.store is None and not workspace.store.exists():
        extract(given)
    from pipeline.infra.console import brief
    from pipeline.stages import train as stage

    stage.run(params, method, workspace)
    if not brief():
        typer.echo(f"next: vidpipe evaluate {given.arguments(method=method)}", err=True)


def _warn_of_start(recipe: str | None, params: Params) -> None:
    """Warn where the published accuracy began with another adapter and this training does not."""
    from pipeline.infra.console import console
    from pipeline.infra.recipes import load_recipe

    start = load_recipe(recipe).starts_from if recipe else None
    if start is not None and params.train.starts_from is None:
        console.print(
            f"warning: the published accuracy of {recipe} starts from the adapter of {start}; "
            "expect less, or give its folder: --set train.starts_from=FOLDER"
        )


def evaluate(*, method: Method = None, given: Run) -> None:
    """Multi-view accuracy of a trained method on the validation clips."""
    params = given.read()
    method = given.choose_method(method, params)
    from pipeline.stages import evaluate as stage

    for name, value in stage.run(params, method, given.workspace).items():
        typer.echo(f"{name} {value:.4g}")


def export(*, method: Method = None, given: Run) -> None:
    """Merge what can be merged, prove it on real clips, and package the model."""
    params = given.read()
    method = given.choose_method(method, params)
    from pipeline.stages import export as stage

    stage.run(params, method, given.workspace)


def report(
    *,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; default: every method evaluated here.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--listed", help="The methods that pipeline.methods lists.")
    ] = False,
    given: Run,
) -> None:
    """One table and one picture over all methods."""
    from vidpipe.errors import VidpipeError

    workspace = given.workspace
    if listed:
        names = list(given.read().pipeline.methods)
    else:
        names = methods.split(",") if methods else _evaluated(workspace)
    if not names:
        raise VidpipeError(f"{workspace.results}: nothing evaluated yet; run `vidpipe evaluate`")
    from pipeline.stages import report as stage

    stage.run(names, workspace)


def _evaluated(workspace: Workspace) -> list[str]:
    from vidpipe.methods.config import CONFIGS

    return [name for name in CONFIGS if workspace.result(name, "eval.json").exists()]


def run(
    *,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; default: the recipe's, else those of pipeline.methods."
        ),
    ] = None,
    given: Run,
) -> None:
    """Every stage from extract to report, one after the other, without DVC.

    Where data.root is the embedded data set's, it is rendered first.
    """
    from vidpipe.errors import ArgumentError

    params, workspace = given.read(), given.workspace
    names = methods.split(",") if methods else given.recipe_methods()
    names = names or list(params.pipeline.methods)
    if not names:
        raise ArgumentError("methods", " is missing, and pipeline.methods lists none")
    for name in names:
        params.method(name)
    if given.data_root is None and Path(params.data.root) == EMBEDDED:
        from pipeline.stages import synth as synth_stage

        synth_stage.refuse_other(params.synth, workspace.synth)
        synth(given)
        given = replace(given, data_root=str(workspace.synth))
        params = given.read()
    from pipeline.stages import evaluate, export, train
    from pipeline.stages import report as report_stage

    extract(given)
    for name in names:
        train.run(params, name, workspace)
        evaluate.run(params, name, workspace)
        export.run(params, name, workspace)
    report_stage.run(names, workspace)
