"""The command `vidpipe tune`. Nothing heavy is imported at the top."""

from __future__ import annotations

from typing import Annotated

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
    overlays,
    read_params,
    workspace,
)


def tune(
    method: Method = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="methods.aim.lr=loguniform(1e-4,1e-2); also uniform, randint, choice. Repeatable; "
            "default: the method's own space."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1)] = 20,
    max_epochs: Annotated[
        int | None, typer.Option(min=1, help="Of a trial; default train.epochs.")
    ] = None,
    concurrent: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 1,
    search: Annotated[str, typer.Option(help="random or optuna.")] = "random",
    seed: Annotated[int, typer.Option(help="Of the search; trials use train.seed.")] = 0,
    params: ParamsFile = PARAMS,
    recipe: Recipe = None,
    data_root: DataRoot = None,
    set: Set = None,
    out: Out = HERE,
) -> None:
    """Search parameters of a training with Ray Tune and ASHA; print the best as a command."""
    resolved = read_params(params, recipe, data_root, set)
    method = choose_method(method, recipe, resolved)
    from pipeline.tools import tune as stage

    how = stage.Search(trials, max_epochs, concurrent, search, seed)
    base = overlays(recipe, data_root, set)
    print(stage.run(params, base, method, space or [], how, workspace(out)))
