"""vidpipe: a frozen image transformer becomes a video action classifier by training a few adapters."""

__version__ = "0.1.0"
