"""Reading what other code bases saved."""

from vidpipe.interop.reference import build_from_reference

__all__ = ["build_from_reference"]
