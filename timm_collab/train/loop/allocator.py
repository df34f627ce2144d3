"""Memory allocation of a process that trains on the CPU."""
from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""

LARGE = 2**30
"""Size in bytes from which a block is returned to the system as soon as it is freed."""

CHOICES = ('MMAP_MAX', 'MMAP_THRESHOLD', 'TOP_PAD', 'TRIM_THRESHOLD')
"""Settings of glibc that users may have chosen: variables `MALLOC_..._` or tunables `glibc.malloc....`."""


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next allocations, rather than return it to the system.

    Every update allocates and frees the same activations and gradients. By default glibc returns part of them, and the
    system has to map and clear those pages again in the next update. With this, the process stays at its peak memory
    until it ends.

    Returns:
        Whether freed memory is kept. Other C libraries are left alone, and so is a process whose environment configures
        malloc, such as `MALLOC_TRIM_THRESHOLD_=131072`.
    """
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    chosen = any(f'MALLOC_{name}_' in os.environ or f'glibc.malloc.{name.lower()}' in tunables for name in CHOICES)
    if chosen or platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    # Old versions take at most 32 MiB.
    mapped = libc.mallopt(M_MMAP_THRESHOLD, LARGE) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and libc.mallopt(M_TRIM_THRESHOLD, -1))
