"""How this process takes memory from the system."""

from __future__ import annotations

import os
import sys

# Read by glibc when a program starts, and by nothing else.
TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def use_huge_pages() -> None:
    """Starts the running program anew, with memory in pages of 2 MiB where the system has them.

    On a CPU, each call of a compiled function takes its buffers anew, and the system hands out and
    clears every page at its first use. With pages of 4 KiB that is a twelfth to a sixth of the
    time of a training step of wav2vec 2.0 BASE, and some of every other. glibc asks for larger ones
    only where its environment says so before it starts. (To keep freed memory instead, in one
    arena, does as much for that step, but takes 1.4 times the memory and makes the GAN's step
    slower by a third.)

    To be called by a program before it does anything else. Does nothing the second time, or where
    `GLIBC_TUNABLES` is set, or under another system.
    """
    if sys.platform != "linux" or TUNABLES in os.environ or not sys.executable:
        return
    os.environ[TUNABLES] = HUGE_PAGES
    try:
        os.execv(sys.executable, sys.orig_argv)
    except OSError:  # as before, then
        del os.environ[TUNABLES]
