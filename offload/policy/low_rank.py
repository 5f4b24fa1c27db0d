"""The linear parts of `probes`: ridge regression of reduced rank, and their weights in few bits.

The rank is reduced by the singular vectors of what the regression fits (Izenman 1975). Weights are int8, the many
ones of the probes int4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.policy.probes import Floats, pack_nibbles

RIDGE = 300.0
"""Weight of the penalty, against inputs with a mean square of one."""
STEP = 0.335
"""Of numbers of four bits, in standard deviations: what loses least of a normal distribution (Max 1960)."""


class LowRank:
    """y = up @ (down @ x - centre) + mean."""

    def __init__(self, down: Floats, up: Floats, centre: Floats, mean: Floats) -> None:
        self.down, self.up, self.centre, self.mean = down, up, centre, mean

    @classmethod
    def fit(cls, x: Floats, y: Floats, rank: int, rows: NDArray[np.bool_], ridge: float = RIDGE) -> LowRank:
        """x: [T, X], y: [T, Y]; `rows` are used."""
        x, y = x[rows], y[rows]
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        x, y = x - x_mean, y - y_mean
        root = np.linalg.cholesky(x.T @ x + ridge * np.eye(x.shape[1], dtype=np.float32))
        projected = np.linalg.solve(root, x.T @ y)  # [X, Y]
        _, vectors = np.linalg.eigh(projected @ projected.T)
        leading = vectors[:, -min(rank, vectors.shape[1]) :]
        down = np.ascontiguousarray(np.linalg.solve(root.T, leading).T).astype(np.float32)  # [R, X]
        up = np.ascontiguousarray((leading.T @ projected).T).astype(np.float32)  # [Y, R]
        return cls(down, up, (down @ x_mean).astype(np.float32), y_mean.astype(np.float32))

    @property
    def offset(self) -> Floats:
        """What y is where x is nothing."""
        result: Floats = (self.mean - self.up @ self.centre).astype(np.float32)
        return result

    def __call__(self, x: Floats) -> Floats:
        result: Floats = ((x @ self.down.T - self.centre) @ self.up.T + self.mean).astype(np.float32)
        return result


@dataclass(slots=True)
class PackedProbe:
    """A layer's probe as `Probes` has it, without what is common to all: its part of each array of that name."""

    down: NDArray[np.int8]
    down_scale: Floats
    centre: Floats
    up: NDArray[np.uint8]
    up_scale: Floats

    @classmethod
    def of(cls, part: LowRank, spread: Floats, layers: int) -> PackedProbe:
        """`part`, which foretells [L * E] margins, each divided by its `spread`, and without their mean."""
        odd = len(part.down) % 2
        down = np.pad(part.down, ((0, odd), (0, 0)))
        up = np.pad(part.up / spread[:, None], ((0, 0), (0, odd)))
        # Four bits lose a share of each column's part in what is said. Few columns say most of it; turned so that
        # all say about as much, they lose half (incoherence: Chee et al. 2023, arXiv 2307.13304).
        size = np.sqrt(up.std(axis=0) + 1e-12)
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(len(down), len(down))))[0]
        up = ((up / size) @ turn).reshape(layers, -1, len(down))
        up_scale = (STEP * up.std(axis=(1, 2)) + 1e-12).astype(np.float32)
        bits, down_scale = rows_int8(turn.T @ (down * size[:, None]))
        centre = (turn.T @ (np.pad(part.centre, (0, odd)) * size)).astype(np.float32)
        return cls(bits, down_scale, centre, pack_nibbles(up / up_scale[:, None, None]), up_scale)


def rows_int8(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix as int8 with a scale a row."""
    scale = (np.abs(matrix).max(axis=1) / 127 + 1e-12).astype(np.float32)
    return np.rint(matrix / scale[:, None]).astype(np.int8), scale
