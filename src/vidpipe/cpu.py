"""How a process that computes uses the CPU: how many threads, and memory that stays its own."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import torch

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def use_cpu(threads: int) -> None:
    """Compute on `threads` threads and keep freed memory for the next step. Once, early, a process."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed; elsewhere nothing happens.

    It gives tensors over 32 MiB back to the kernel, and every step gets them anew, page by page,
    which shows in a training step on a CPU. In return the process keeps its peak until it ends.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
