"""Options that several commands share, each declared once, and the parameters that they resolve to.

A command names a dataclass of this file as the type of a parameter; `with_options` turns its fields
into options of the command line and hands the command one object.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

if TYPE_CHECKING:
    from pipeline.infra.workspace import Workspace
    from pipeline.tools.predict_people import Who
    from vidpipe.errors import ArgumentError
    from vidpipe.params import Params

Method = Annotated[
    str | None,
    typer.Option(
        help="A method; `vidpipe methods` lists them. Default: the recipe's, if it has one."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder that holds data/, models/ and results/.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ClassName = Annotated[str | None, typer.Option("--class", help="Clips of one class.")]
WhichClips = Annotated[int, typer.Option(min=0, help="Which clips.")]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A parameters file and what is laid over it: the options of every command that reads parameters."""

    params: Annotated[Path, typer.Option("--params", help="The parameters file.")] = Path(
        "params.yaml"
    )
    recipe: Annotated[
        str | None, typer.Option(help="Overlay from pipeline/recipes, or a path to a YAML file.")
    ] = None
    data_root: Annotated[str | None, typer.Option(help="Folder of the videos (data.root).")] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a value: train.epochs=5. Repeatable."),
    ] = None

    def overlays(self) -> list[dict[str, Any]]:
        """What is laid over the parameters file: the recipe, then the data root, then each `set`."""
        from pipeline.infra.recipes import read_recipe
        from vidpipe.config.overlay import parse_override

        found = [read_recipe(self.recipe)] if self.recipe else []
        if self.data_root is not None:
            found.append({"data": {"root": self.data_root}})
        return found + [parse_override(text) for text in self.set or []]

    def read_raw(self) -> dict[str, Any]:
        """The parameters as they were given, before they are checked."""
        from vidpipe.config.overlay import deep_merge, read_yaml

        raw = read_yaml(self.params)
        for overlay in self.overlays():
            raw = deep_merge(raw, overlay)
        return raw

    def read(self) -> Params:
        """The checked parameters. Raises VidpipeError."""
        from vidpipe.params import load_params

        return load_params(self.params, self.overlays())

    def recipe_methods(self) -> list[str]:
        """The methods that the recipe has blocks for."""
        from pipeline.infra.recipes import load_recipe

        return load_recipe(self.recipe).methods if self.recipe else []

    def choose_method(self, method: str | None, params: Params) -> str:
        """`method`, or the one that the recipe is for. Raises VidpipeError where it is unclear."""
        from vidpipe.errors import VidpipeError

        if method is None:
            found = self.recipe_methods()
            if len(found) != 1:
                count = len(found) or "no"
                why = (
                    f"--recipe {self.recipe} has {count} methods" if self.recipe else "no --recipe"
                )
                raise VidpipeError(f"--method is missing: {why}; `vidpipe methods` lists them")
            (method,) = found
        params.method(method)
        return method


@dataclass(frozen=True, kw_only=True)
class Run(Configuration):
    """A configuration and the folder that its data, models and results lie in."""

    out: Out = Path()

    @property
    def workspace(self) -> Workspace:
        from pipeline.infra.workspace import Workspace

        return Workspace(self.out)

    def arguments(self, **more: str) -> str:
        """The options of `more` and those given here, quoted for a shell; defaults are left out."""
        given: list[tuple[str, Any]] = [*more.items()]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                values = value if isinstance(value, list) else [value]
                given += [(field.name, one) for one in values]
        return shlex.join(
            text for name, value in given for text in (f"--{name.replace('_', '-')}", str(value))
        )


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Whether and how `predict` merges windows."""

    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline",
            help="Merge windows into start, end, label, score; also as json, vtt, srt or edl. --window: "
            "default the model's; --step: a quarter of it.",
        ),
    ] = False
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="--timeline: least probability.")
    ] = None
    min_length: Annotated[
        float, typer.Option(min=0, help="--timeline: seconds; shorter stretches are left out.")
    ] = 0.0
    rate: Annotated[
        int, typer.Option(min=1, max=240, help="--timeline: frames a second of an EDL.")
    ] = 25


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Where the boxes of people come from, of models of task detection."""

    proposals: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Of a model of task detection: CSV or Parquet of people's boxes.",
        ),
    ] = None
    proposals_start: Annotated[
        float,
        typer.Option(
            min=0,
            help="Second of the proposals' clock at which videos begin: 900 of AVA's cut videos.",
        ),
    ] = 0.0
    detector: Annotated[
        str | None,
        typer.Option(
            help="In place of --proposals: weights of torchvision's person detector, a file or hub."
        ),
    ] = None
    detector_model: Annotated[str, typer.Option(help="Of torchvision: fasterrcnn_...")] = (
        "fasterrcnn_resnet50_fpn_v2"
    )
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of a person's box.")] = 0.8

    def who(self) -> Who:
        from pipeline.tools.predict_people import Who

        found = (self.detector, self.detector_model, self.min_score, self.proposals_start)
        return Who(self.proposals, *found)

    @property
    def given(self) -> bool:
        return self.proposals is not None or self.detector is not None


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A function for Typer that calls `command`: of a parameter whose type is a dataclass, each field
    becomes an option. An ArgumentError leaves it as a VidpipeError that names the option."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            types = get_type_hints(kind, include_extras=True)
            options = [
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=types[field.name],
                )
                for field in fields(kind)
            ]
            groups[parameter.name] = kind, [option.name for option in options]
            parameters += options
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    @wraps(command)
    def run(**values: Any) -> None:
        from vidpipe.errors import ArgumentError, VidpipeError

        for name, (kind, names) in groups.items():
            values[name] = kind(**{each: values.pop(each) for each in names})
        try:
            command(**values)
        except ArgumentError as error:
            raise VidpipeError(_by_option(error, parameters)) from None

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _by_option(error: ArgumentError, parameters: Sequence[inspect.Parameter]) -> str:
    """The message with the option's name, where the argument came from an option of this command."""
    name = error.argument.replace(".", "_")
    for parameter in parameters:
        if parameter.name in (name, f"{name}s"):  # one of several, as `--methods` of `run`
            declared = getattr(parameter.annotation, "__metadata__", ())
            names = [info.default for info in declared if isinstance(info, OptionInfo)]
            option = names[0] if names and isinstance(names[0], str) else None
            option = option or f"--{parameter.name.replace('_', '-')}"
            # A key of params.yaml may have been set there as well.
            said = f"{error.argument} ({option})" if "." in error.argument else option
            return f"{said}{error.problem}"
    return str(error)
