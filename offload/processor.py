"""What memory plans have to know of this machine's processor."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_ONEDNN_BF16 = {"avx512bw", "avx512dq", "avx512vl"}


@functools.cache
def compiles_products() -> bool:
    """Whether torch has bfloat16 matrix products compiled, shape by shape, by oneDNN.

    On x86 it does from AVX-512 (BW, DQ, VL) on; otherwise its own loops compute them. Where it is not known, it is
    taken that it does.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True  # not Linux
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return not flags or set(flags[0]) >= _ONEDNN_BF16
