"""The one exception a user is meant to see."""


class VidpipeError(Exception):
    """A user's mistake or a broken input: one line naming the file, key or value and the way out.

    The command line prints it without a traceback and exits with code 1.
    """


class TrainingStopped(Exception):
    """A training was asked to stop and did, its state saved; not an error."""
