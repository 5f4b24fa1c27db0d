"""What is compiled, and when: only what is wanted, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload.errors import EngineBroken
from offload.runtime import compile as compiling
from offload.runtime.compile import compile_kernels, kernels_compiled

POLICIES = "offload.policy.kernels.gates, offload.policy.kernels.auto"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The code that would have compiled something, in an empty cache."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    codes: list[str] = []

    def run_code(code: str) -> str:
        codes.append(code)
        return ""

    monkeypatch.setattr(compiling, "run_code", run_code)
    return codes


def test_policies_do_without_decode_kernels_and_are_compiled_once(ran: list[str]) -> None:
    assert compile_kernels(precision=None)
    assert ran == [f"import {POLICIES}"]
    assert not compile_kernels(precision=None)
    assert not kernels_compiled("int8")
    assert compile_kernels(precision="int8")
    assert ran[1:] == ["import offload.runtime.kernels.int8"]
    assert kernels_compiled("int8") and not kernels_compiled("bf16")
    assert not compile_kernels(precision="int8")


def test_a_precision_brings_the_policies_with_it(ran: list[str]) -> None:
    assert compile_kernels()
    assert ran == [f"import {POLICIES}, offload.runtime.kernels.bf16"]
    assert not compile_kernels(precision=None)


def test_what_failed_is_tried_again(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(compiling, "run_code", lambda code: "no compiler")
        with pytest.raises(EngineBroken, match="the kernels cannot be compiled: no compiler"):
            compile_kernels()
    assert compile_kernels()
    assert len(ran) == 1
