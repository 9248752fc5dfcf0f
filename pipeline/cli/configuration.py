"""Commands that show a configuration and its cost: params, methods, recipes, profile."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Configuration, Json, Method


def params(
    *,
    given: Configuration,
    write: Annotated[
        bool, typer.Option("--write", help="Change the file, keeping its comments.")
    ] = False,
) -> None:
    """Print the resolved parameters, or write overrides into the file."""
    from functools import reduce

    import yaml

    resolved = given.read()
    if write:
        from pipeline.infra.recipes import write_overlay
        from vidpipe.config.overlay import deep_merge

        write_overlay(given.params, reduce(deep_merge, given.overlays(), {}))
    else:
        typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False), nl=False)


def methods() -> None:
    """List the methods, what they are, and whether they have a form for Swins."""
    from pipeline.tools.list_methods import run as show

    show()


def backbones(
    pattern: Annotated[str, typer.Argument(help="Names, such as '*clip*b*16*'.")] = "*",
    *,
    json: Json = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Compare features with timm's own, on small random copies: counts by class and "
            "reason, and the worst error (open_clip: tests).",
        ),
    ] = False,
) -> None:
    """List the image models that load, with their cost, pooling and licence, and why others do not."""
    if check:
        from pipeline.tools.check_backbones import run as show
    else:
        from pipeline.tools.list_backbones import run as show
    show(pattern, json)


def recipes(*, json: Json = False) -> None:
    """List the recipes: what they cost, and what the papers report for them."""
    from pipeline.tools.list_recipes import run as show

    show(json)


def profile(
    *,
    method: Method = None,
    given: Configuration,
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 400,
    json: Json = False,
    paper_tables: Annotated[
        bool, typer.Option("--paper-tables", help="Recompute every cost the papers print.")
    ] = False,
) -> None:
    """Parameters, GFLOPs and memory of a configuration, before anything is trained."""
    if paper_tables:
        from pipeline.tools.profile import paper_tables as recompute

        recompute(json)
        return
    if method is None and given.recipe is None:
        from vidpipe.errors import VidpipeError

        raise VidpipeError("profile: expected --method NAME, --recipe NAME or --paper-tables")
    resolved = given.read()
    method = given.choose_method(method, resolved)
    from pipeline.tools import profile as tool

    tool.run(resolved, method, classes, json)
