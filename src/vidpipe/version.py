"""The version that adapters, packages and runs record."""

__version__ = "0.1.0"
