"""How this process takes memory from the system."""

from __future__ import annotations

import ctypes

# malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keeps freed memory for the next use instead of giving it back to the system.

    On a CPU, each call of a compiled function takes its buffers anew. glibc gives big ones back at
    once, so that the next step pays for the same pages again: a tenth of the time of a training
    step of wav2vec 2.0 BASE, more on a virtual machine. Does nothing under another C library.

    To be called before other threads take memory: each would have an arena of its own, which can
    hold no block of 64 MiB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
