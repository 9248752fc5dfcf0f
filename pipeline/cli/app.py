"""The `vidpipe` command: its groups of commands, and how it ends.

Nothing heavy is imported at the top: `vidpipe --help` must answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import typer

from pipeline.cli.configuration import methods, params, profile, recipes
from pipeline.cli.data import show, stats
from pipeline.cli.options import with_options
from pipeline.cli.stages import evaluate, export, extract, report, run, synth, train
from pipeline.cli.trained import compare, demo, explain, predict, splits
from pipeline.cli.tune import tune
from pipeline.cli.weights import fetch_weights, import_checkpoint

Commands = Mapping[str, Callable[..., None]]
STAGES: Commands = {
    "synth": synth,
    "extract": extract,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "run": run,
}
BEFORE: Commands = {
    "params": params,
    "methods": methods,
    "recipes": recipes,
    "profile": profile,
    "tune": tune,
}
AFTER: Commands = {
    "compare": compare,
    "splits": splits,
    "explain": explain,
    "predict": predict,
    "demo": demo,
}
WEIGHTS: Commands = {
    "fetch-weights": fetch_weights,
    "import-checkpoint": import_checkpoint,
}


def _group(text: str) -> typer.Typer:
    return typer.Typer(
        help=text, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
    )


def _add(group: typer.Typer, commands: Commands, panel: str | None = None) -> None:
    for name, command in commands.items():
        group.command(name, rich_help_panel=panel)(with_options(command))


app = _group("Turn a frozen image transformer into a video action classifier.")
_add(app, STAGES, "Stages, in their order")
_add(app, BEFORE, "Before a training")
_add(app, AFTER, "With trained models")
_add(app, WEIGHTS, "Weights of others")
data_group = _group("Look at the extracted data.")
_add(data_group, {"stats": stats, "show": show})
app.add_typer(data_group, name="data", rich_help_panel="Before a training")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 1."""
    from pipeline.infra.stopping import Interrupted
    from vidpipe.errors import VidpipeError
    from vidpipe.text import printable

    try:
        app()
    except VidpipeError as error:
        print(f"vidpipe: {printable(str(error), lines=True)}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"vidpipe: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("vidpipe: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
