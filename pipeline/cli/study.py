"""The command `vidpipe study`, a fair comparison."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Run


def study(
    *,
    given: Run,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, hours and disk; train nothing.")
    ] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(help="Only this row, such as for a sitting; the whole study takes it over."),
    ] = None,
    null: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Permute the labels of the study's predictions this often: how often do its tests see "
            "what is not there?",
        ),
    ] = None,
) -> None:
    """Compare methods: folds by group, each tuned within its training part, intervals, a recommendation.

    Killed, it goes on; what is trained is not trained again. With --data-root, a frame store that is not
    there yet is made first.
    """
    params, raw, workspace = given.read(), given.read_raw(), given.workspace
    if null is not None:
        from pipeline.stages.study import null as show

        show(params, workspace, null)
        return
    if given.data_root is not None and params.data.store is None and not workspace.store.exists():
        from pipeline.cli.stages import extract

        extract(given)
    if dry_run:
        from pipeline.tools.study_plan import run as plan

        plan(params, raw, workspace, row)
        return
    from pipeline.stages import study as stage

    stage.run(params, raw, workspace, row)
