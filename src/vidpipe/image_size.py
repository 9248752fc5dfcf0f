"""Sizes of a picture: one number for a square, else (height, width), in pixels. Needs no torch."""

from __future__ import annotations

from typing import TypeAlias

Size: TypeAlias = int | tuple[int, int]
"""A square is always one number, so that a size has one form."""


def size_of(height: int, width: int) -> Size:
    return height if height == width else (height, width)


def sides(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def words(size: Size) -> str:
    """`224`, or `224 x 384`: height x width."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"
