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
    offsets: Annotated[
        bool,
        typer.Option(
            "--offsets",
            help="Find which heads look at which frames instead; the next two say how many.",
        ),
    ] = False,
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of all heads, at most; default 1/3.")
    ] = None,
    reach: Annotated[
        int | None, typer.Option(min=1, help="Frames away, at most; default 2.")
    ] = None,
    given: Run,
) -> None:
    """Search parameters of a training with Ray Tune and ASHA; print the best as a command."""
    from pipeline.infra.search_space import checked_texts

    method = given.choose_method(method, given.read())
    if offsets:
        from pipeline.tools import tune_offsets

        params = given.read()
        command = tune_offsets.run(params, method, share, reach, max_epochs, given.workspace)
        typer.echo(command)
        return
    raw = given.read_raw()
    texts = checked_texts(raw, method, space or [], search)
    from pipeline.tools import tune as tool

    how = tool.Search(trials, max_epochs, concurrent, search, seed)
    best = tool.run(raw, method, texts, how, given.workspace)
    typer.echo(best)
