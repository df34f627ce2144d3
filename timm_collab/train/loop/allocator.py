"""Memory of a process that trains on the CPU."""
from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""

LARGE = 2**30
"""Bytes from which on a block is given back to the system as soon as it is freed."""

CHOICES = ('MMAP_MAX', 'MMAP_THRESHOLD', 'TOP_PAD', 'TRIM_THRESHOLD')
"""What else says when memory is returned, as a variable `MALLOC_..._` or a tunable `glibc.malloc....`."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for what is allocated next, in place of returning it to the system.

    Every update allocates and frees the same activations and gradients. By itself glibc returns part of them, and the
    system has to find and clear the pages of that part again in the next update. Kept, the process holds its peak of
    memory until it ends.

    Returns:
        Whether it does now. Other C libraries are left as they are, and so is a process whose environment says when
        memory is returned, such as `MALLOC_TRIM_THRESHOLD_=131072`.
    """
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    chosen = any(f'MALLOC_{name}_' in os.environ or f'glibc.malloc.{name.lower()}' in tunables for name in CHOICES)
    if chosen or platform.libc_ver()[0] != 'glibc':
        return False
    libc = ctypes.CDLL(None)
    # Old versions take at most 32 MiB.
    mapped = libc.mallopt(M_MMAP_THRESHOLD, LARGE) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped and libc.mallopt(M_TRIM_THRESHOLD, -1))
