"""The x axis that all pictures by layer share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)

GUTTER = 6
"""Columns at the left of an axis, for labels."""

_WIDEST = 4
_STEPS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100)


@dataclass(frozen=True, slots=True)
class LayerAxis:
    """Which columns are which layers.

    Attributes:
        layers: Of the model, those with routed experts.
        group: Layers that share a column, where there are more layers than columns.
        cell: Columns of each group.
    """

    layers: int
    group: int
    cell: int

    @classmethod
    def fit(cls, layers: int, width: int) -> LayerAxis:
        """The widest axis for ``layers`` (at least 1) in ``width`` columns (at least 1)."""
        group = -(-layers // width)
        return cls(layers, group, min(_WIDEST, width // -(-layers // group)))

    @property
    def groups(self) -> int:
        return -(-self.layers // self.group)

    @property
    def width(self) -> int:
        return self.groups * self.cell

    def grouped(self, values: NDArray[Number], fill: Number | float | int = 0) -> NDArray[Number]:
        """``[..., L]`` as ``[..., groups, group]``; where a group is not full, ``fill``."""
        missing = self.groups * self.group - self.layers
        if missing:
            widths = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
            values = np.pad(values, widths, constant_values=fill)
        return values.reshape(*values.shape[:-1], self.groups, self.group)

    def ruler(self) -> str:
        """Layers' numbers under their columns: ``0    5    10``."""
        widest = len(str(self.layers - 1)) + 1
        step = next(
            (step for step in _STEPS if step % self.group == 0 and step // self.group * self.cell >= widest), 0
        )
        text = ""
        for layer in range(0, self.layers, step or self.layers):
            at = layer // self.group * self.cell
            if at + len(str(layer)) <= self.width:
                text = text.ljust(at) + str(layer)
        return text
