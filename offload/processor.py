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
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = ""  # not Linux
    return _may_compile(platform.machine(), said)


def _may_compile(machine: str, cpuinfo: str) -> bool:
    flags = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")]
    return machine not in ("x86_64", "AMD64") or not flags or set(flags[0]) >= _ONEDNN_BF16
