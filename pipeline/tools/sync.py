"""`vidpipe sync`: what MLflow could not be told when it was not there, told now."""

from __future__ import annotations

from pipeline.infra.mlflow import journal
from pipeline.infra.mlflow.tracking import TrackedRun
from vidpipe.errors import VidpipeError


def sync() -> list[str]:
    """Send what runs of this project kept; returns a line for each that is whole now.

    Raises VidpipeError, in a line, at the first that MLflow does not take; the rest is kept.
    """
    done = []
    for file in journal.kept():
        fields, entries = journal.read(file)
        try:
            run = TrackedRun(**fields)
        except TypeError as error:
            raise VidpipeError(f"{file}: not what a run left to send ({error})") from None
        failure = run.resend(entries)
        if failure is not None:
            left = len(journal.kept())
            raise VidpipeError(
                f"{failure}; {left} runs are kept in {journal.FOLDER} and were not sent"
            )
        file.unlink()
        done.append(f"{run.stage} {run.method}: sent to {run.server.name}")
    return done
