"""What memory plans ask of the processor."""

from __future__ import annotations

import platform
import sys

import pytest
import torch

from offload.processor import _may_compile, compiles_products

AVX2 = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu sse2 avx avx2 fma\n"
AVX512 = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "compiles"),
    [
        ("x86_64", AVX2, False),
        ("x86_64", AVX512, True),
        ("x86_64", AVX512.replace(" avx512vl", ""), False),
        ("x86_64", "", True),
        ("aarch64", "Features\t: fp asimd bf16\n", True),
    ],
)
def test_products_are_compiled_from_avx512_on_and_where_nothing_is_known(machine, cpuinfo, compiles):
    assert _may_compile(machine, cpuinfo) == compiles


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="is told by what Linux says of x86"
)
def test_torch_says_the_same_of_this_processor():
    assert compiles_products() == torch.ops.mkldnn._is_mkldnn_bf16_supported()
