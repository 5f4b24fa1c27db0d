"""Routers applied to residuals that are not theirs: the kernel, plain NumPy, and the definition."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.policy.base import RouterWeights
from offload.policy.lookahead import GateLookahead, likeliest, widen
from offload.policy.registry import _MAKERS
from tests.support.routing import narrow


def made_up(experts: int, hidden: int, seed: int) -> tuple[RouterWeights, np.ndarray]:
    random = np.random.default_rng(seed)
    gates = [narrow(random.normal(size=(experts, hidden))) for _ in range(2)]
    norms = [narrow(random.normal(1, 0.2, hidden)) for _ in range(2)]
    return RouterWeights(gates, norms, 1e-5), random.normal(size=hidden).astype(np.float32) * 3


@pytest.mark.parametrize("compiled", [True, False])
@given(experts=st.integers(1, 70), hidden=st.integers(1, 130), seed=st.integers(0, 9))
def test_both_are_the_definition(compiled: bool, experts: int, hidden: int, seed: int) -> None:
    routers, x = made_up(experts, hidden, seed)
    wide = x.astype(np.float64)
    for layer in range(2):
        gate, norm = (widen(bits[layer]).astype(np.float64) for bits in (routers.gate, routers.norm))
        logits = gate @ (wide / np.sqrt((wide**2).mean() + routers.eps) * norm)
        powers = np.exp(logits - logits.max())
        found = GateLookahead(routers, compiled).probabilities(layer, x)
        assert found.dtype == np.float32
        assert np.allclose(found, powers / powers.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_answers_stay_and_weights_may_be_read_only_views(compiled: bool) -> None:
    routers, x = made_up(8, 6, 1)
    for array in (*routers.gate, *routers.norm):
        array.flags.writeable = False
    strided = RouterWeights(
        [np.repeat(gate, 2, axis=1)[:, ::2] for gate in routers.gate], routers.norm, routers.eps
    )
    lookahead = GateLookahead(routers, compiled)
    first = lookahead.probabilities(0, x)
    kept = first.copy()
    lookahead.probabilities(1, x)
    assert np.array_equal(first, kept)
    assert np.array_equal(GateLookahead(strided, compiled).probabilities(0, x), kept)


def test_the_likeliest_come_first_and_equals_in_order() -> None:
    assert likeliest(np.array([0.1, 0.3, 0.1, 0.3, 0.2], np.float32), 4).tolist() == [1, 3, 4, 0]


def test_policies_are_imported_without_numba_and_torch() -> None:
    modules = ", ".join(sorted({maker.partition(":")[0] for maker in _MAKERS.values()}))
    code = f"import sys, {modules}; print([name for name in ('numba', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
