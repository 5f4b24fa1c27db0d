"""Memory in huge pages where the system has them: reading weights is in good part finding their pages."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def huge_pages(nbytes: int) -> NDArray[np.uint8]:
    """At least ``nbytes`` bytes of private anonymous memory, zero, page-aligned, taken as they are written."""
    memory = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, AttributeError):
        pass  # a system without huge pages
    return np.frombuffer(memory, np.uint8)
