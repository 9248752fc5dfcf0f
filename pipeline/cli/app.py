"""The `vidpipe` command: its groups of commands, and how it ends.

Nothing heavy is imported at the top: `vidpipe --help` must answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import typer

from pipeline.cli.configuration import backbones, methods, params, profile, recipes
from pipeline.cli.data import check, convert_proposals, show, stats
from pipeline.cli.hub import pull, push
from pipeline.cli.options import with_options
from pipeline.cli.project import doctor, init
from pipeline.cli.serving import serve
from pipeline.cli.stages import evaluate, export, extract, report, run, synth, train
from pipeline.cli.study import study
from pipeline.cli.tracking import promote, sync
from pipeline.cli.trained import compare, demo, drift, embed, explain, predict, splits
from pipeline.cli.tune import tune
from pipeline.cli.weights import fetch_weights, import_checkpoint

UsageError: Any = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "UsageError")
"""Click's, which newer versions of Typer bring along and older ones import."""
INTERRUPTED = 130
"""What Typer makes of Ctrl-C, and shells."""
Commands = Mapping[str, Callable[..., None]]
STAGES: Commands = {
    "synth": synth,
    "extract": extract,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "study": study,
    "run": run,
}
BEFORE: Commands = {
    "init": init,
    "doctor": doctor,
    "params": params,
    "methods": methods,
    "backbones": backbones,
    "recipes": recipes,
    "profile": profile,
    "tune": tune,
}
AFTER: Commands = {
    "compare": compare,
    "splits": splits,
    "explain": explain,
    "promote": promote,
    "sync": sync,
    "predict": predict,
    "drift": drift,
    "embed": embed,
    "demo": demo,
    "serve": serve,
}
SHARING: Commands = {
    "push": push,
    "pull": pull,
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
_add(app, SHARING, "Shared models and weights of others")
data_group = _group("Look at the extracted data.")
_add(
    data_group,
    {
        "stats": stats,
        "show": show,
        "check": check,
        "convert-proposals": convert_proposals,
    },
)
app.add_typer(data_group, name="data", rich_help_panel="Before a training")


def main() -> None:
    """Entry point: a mistake is one line on standard error; exit code 1, or 2 for the command line's."""
    from pipeline.infra.stopping import Interrupted
    from vidpipe.errors import VidpipeError

    try:
        code = app(prog_name="vidpipe", standalone_mode=False)
    except UsageError as error:
        # Nothing is said where the help was shown in its place.
        if said := " ".join(error.format_message().split()).rstrip("."):
            where = error.ctx.command_path if error.ctx else "vidpipe"
            _end(f"{where}: {said}; see `{where} --help`", 2)
        code = 2
    except VidpipeError as error:
        _end(f"vidpipe: {error}", 1)
    except Interrupted as error:
        _end(f"vidpipe: {error}", error.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        _end("vidpipe: interrupted", code)
    sys.exit(code or 0)


def _end(line: str, code: int) -> NoReturn:
    from vidpipe.text import printable

    print(printable(line, lines=True), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
