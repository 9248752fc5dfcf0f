"""`vidpipe methods`: each method in a line."""

from __future__ import annotations

import sys

from vidpipe.methods.registry import METHODS, SWIN_METHODS


def run() -> None:
    """Print name, families of backbones and the first line of its docstring."""
    for name, method in METHODS.items():
        doc = (method.__doc__ or "").strip() or (
            sys.modules[method.__module__].__doc__ or ""
        ).strip()
        swin = "ViT, Swin" if name in SWIN_METHODS else "ViT"
        print(f"{name:20} {swin:10} {doc.splitlines()[0]}")
