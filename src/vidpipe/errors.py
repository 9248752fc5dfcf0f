"""The one exception a user is meant to see."""


class VidpipeError(Exception):
    """A user's mistake or a broken input: one line naming the file, key or value and the way out.

    The command line prints it without a traceback and exits with code 1.
    """


class ArgumentError(VidpipeError):
    """A mistake in one argument of a function, or in one key of params.yaml; the message begins with it.

    `argument`: its name; `problem`: the rest of the message, from the space or colon on. Whoever gave
    the argument under another name, such as the command line, can say that name in its place.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)
        self.argument, self.problem = argument, problem

    def __str__(self) -> str:
        return f"{self.argument}{self.problem}"


class Diverged(VidpipeError):
    """The loss or the gradient of a training is no number any more."""


class TrainingStopped(Exception):
    """A training was asked to stop and did, its state saved; not an error."""
