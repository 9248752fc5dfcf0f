"""The command `vidpipe tune`, a search over parameters."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Method, Run


def tune(
    *,
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
    given: Run,
) -> None:
    """Search parameters of a training with Ray Tune and ASHA; print the best as a command."""
    from pipeline.infra.search_space import checked_texts

    method = given.choose_method(method, given.read())
    raw = given.read_raw()
    texts = checked_texts(raw, method, space or [], search)
    from pipeline.tools import tune as tool

    how = tool.Search(trials, max_epochs, concurrent, search, seed)
    best = tool.run(raw, method, texts, how, given.workspace)
    typer.echo(best)
