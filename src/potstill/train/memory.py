"""What the C library does with the memory that a training step frees: keep it for the next step."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# Numbers of mallopt's parameters, from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 1 << 30


def keep_freed_memory() -> bool:
    """Let the GNU C library hold freed memory for the next step, instead of giving it back to the system.

    By default large tensors come from the system and return to it, and every new one is handed out page by
    page and filled with zeros. A step frees and asks for the same sizes over and over, more so with several
    networks and threads, and the pages cost more than the losses. Values do not change; the process keeps its
    largest size until it ends. Whoever set ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` has
    decided already.

    Returns:
        Whether it is kept: not with another C library, nor against the environment.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # The trim alone would make matters worse: it fixes the other, which grows by itself, at 128 KiB.
    return bool(mallopt(MMAP_THRESHOLD, MOST)) and bool(mallopt(TRIM_THRESHOLD, MOST))
