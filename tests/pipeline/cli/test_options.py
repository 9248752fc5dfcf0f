"""Options of several commands: declared once, the same everywhere, and given back as they were typed."""

from __future__ import annotations

import pickle
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.cli.options import Configuration, Method, Run, with_options
from vidpipe.errors import ArgumentError, VidpipeError

SHARED = {field.name for field in fields(Configuration)}
WITH_A_FILE_OF_THEIR_OWN = {"predict", "embed", "demo"}
"""Their --params says where frames of other models are from."""


def commands() -> dict[str, set[str]]:
    """Name of each command -> names of its options and arguments."""
    group = typer.main.get_command(app)
    nested = {f"data {name}": each for name, each in group.commands["data"].commands.items()}  # type: ignore[attr-defined]
    found = {**group.commands, **nested}  # type: ignore[attr-defined]
    del found["data"]
    return {name: {p.name for p in command.params} for name, command in found.items()}


def test_a_command_that_reads_parameters_takes_all_of_the_shared_options() -> None:
    read = {
        name: options & SHARED
        for name, options in commands().items()
        if options & SHARED and name not in WITH_A_FILE_OF_THEIR_OWN
    }
    assert len(read) > 12
    assert {name: SHARED - found for name, found in read.items() if found != SHARED} == {}


def parsed(line: str) -> tuple[Run, str | None]:
    """What a command gets that is called with `line`."""
    seen = []

    def command(*, method: Method = None, given: Run) -> None:
        seen.append((given, method))

    cli = typer.Typer()
    cli.command()(with_options(command))
    result = CliRunner().invoke(cli, shlex.split(line), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
PATHS = TEXT.map(Path)


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        Run,
        params=PATHS,
        recipe=st.none() | TEXT,
        data_root=st.none() | TEXT,
        set=st.none() | st.lists(TEXT, min_size=1, max_size=3),
        out=PATHS,
    )
)
def test_arguments_typed_again_give_the_same_options(run: Run) -> None:
    assert parsed(run.arguments(method="aim")) == (run, "aim")


def test_options_left_out_are_not_repeated() -> None:
    assert parsed("") == (Run(), None)
    assert Run().arguments(method="aim") == "--method aim"


def test_a_parameter_beside_the_group_keeps_its_argument_and_default() -> None:
    seen = []

    def command(
        *, names: Annotated[list[str], typer.Argument()], given: Configuration, top: int = 5
    ) -> None:
        seen.append((names, given.set, top))

    cli = typer.Typer()
    cli.command()(with_options(command))
    assert CliRunner().invoke(cli, ["a", "--set", "x=1", "--set", "y=2", "b"]).exit_code == 0
    assert seen == [(["a", "b"], ["x=1", "y=2"], 5)]


def test_overlays_are_laid_in_the_order_recipe_root_overrides() -> None:
    run = Run(recipe="weizmann", data_root="there", set=["data.root=here", "train.epochs=3"])
    recipe, *rest = run.overlays()
    assert "train" in recipe
    assert rest == [
        {"data": {"root": "there"}},
        {"data": {"root": "here"}},
        {"train": {"epochs": 3}},
    ]


def test_a_method_that_is_not_said_is_refused_with_the_way_out() -> None:
    with pytest.raises(VidpipeError, match=r"^--method is missing: no --recipe; `vidpipe methods`"):
        Run().choose_method(None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("method", "--method x"),
        ("seed", "--from-here x"),
        ("top_k", "--top-k x"),
        ("data.root", "data.root (--data-root) x"),
        ("elsewhere", "elsewhere x"),
    ],
)
def test_an_argument_that_is_wrong_is_named_as_the_option_it_came_from(
    argument: str, said: str
) -> None:
    def command(
        *,
        method: Method = None,
        seed: Annotated[int, typer.Option("--from-here", min=0)] = 0,
        top_k: int = 5,
        given: Run,
    ) -> None:
        raise ArgumentError(argument, " x")

    cli = typer.Typer()
    cli.command()(with_options(command))
    error = CliRunner().invoke(cli, []).exception
    assert isinstance(error, VidpipeError)
    assert str(error) == said


def test_an_error_about_an_argument_reaches_other_processes_whole() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("stride", ": uniform sampling has none")))
    assert (str(error), error.argument) == ("stride: uniform sampling has none", "stride")
