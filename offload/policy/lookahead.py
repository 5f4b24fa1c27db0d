"""Looking ahead with the model's own routers: what a later layer would choose if it saw the residual of now."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from offload.policy.base import RouterWeights


class GateLookahead:
    """Applies routers to residuals that are not theirs.

    The residual stream changes little from layer to layer, so the next layer's router mostly chooses the same from
    this layer's residual (Eliseev and Mazur, arXiv 2312.17238).

    Args:
        routers: The model's.
        compiled: Whether with the kernel of `kernels.gates`. By default where Numba is in memory already,
            as it is beside the decode kernels: elsewhere it would take some 60 MiB that no budget has counted.
    """

    def __init__(self, routers: RouterWeights, compiled: bool | None = None) -> None:
        self._gate = [np.ascontiguousarray(gate) for gate in routers.gate]
        self._norm = [np.ascontiguousarray(norm) for norm in routers.norm]
        self._eps = np.float32(routers.eps)
        self._normed = np.empty(self._norm[0].shape[0], np.float32)
        self._kernel = None
        if compiled if compiled is not None else "numba" in sys.modules:
            from offload.policy.kernels.gates import gate_probabilities

            self._kernel = gate_probabilities

    def probabilities(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """softmax(gate of `layer` @ rms_norm(x)): [E] float32. x: [H] float32, contiguous."""
        gate, norm = self._gate[layer], self._norm[layer]
        if self._kernel is None:
            normed = x / np.sqrt(np.dot(x, x) / np.float32(len(x)) + self._eps) * widen(norm)
            return softmax(widen(gate) @ normed)
        out = np.empty(len(gate), np.float32)
        self._kernel(gate, norm, self._eps, x, self._normed, out)
        return out


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values that bfloat16 bits mean."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(logits) / their sum: [E] float32."""
    powers: NDArray[np.float32] = np.exp(logits - logits.max())
    powers /= powers.sum()
    return powers


def likeliest(probabilities: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` experts with the highest probabilities, likeliest first, of equals the lower number."""
    return np.argsort(-probabilities, kind="stable")[:count]
