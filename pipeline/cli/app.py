"""The `vidpipe` command: its groups of commands, and how it ends.

Nothing heavy is imported at the top: `vidpipe --help` must answer at once.
"""

from __future__ import annotations

import sys

import typer

from pipeline.cli import configuration, data, stages, trained, weights
from pipeline.cli.tune import tune

app = typer.Typer(
    help="Turn a frozen image transformer into a video action classifier.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(data.app, name="data")
app.command()(tune)
app.command()(trained.compare)
app.command()(trained.splits)
app.command()(trained.predict)
app.command()(trained.demo)
app.command()(trained.explain)
app.command()(stages.synth)
app.command()(stages.extract)
app.command()(stages.train)
app.command()(stages.evaluate)
app.command()(stages.export)
app.command()(stages.report)
app.command()(stages.run)
app.command()(configuration.profile)
app.command(name="params")(configuration.show_params)
app.command()(configuration.methods)
app.command()(configuration.recipes)
app.command(name="fetch-weights")(weights.fetch_weights)
app.command(name="import-checkpoint")(weights.import_released)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 1."""
    from pipeline.infra.stopping import Interrupted
    from vidpipe.errors import VidpipeError

    try:
        app()
    except VidpipeError as error:
        print(f"vidpipe: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"vidpipe: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("vidpipe: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
