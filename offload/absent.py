"""Importing libraries without the optional packages that they look for and that nothing here needs.

Whatever a process holds beside weights is taken from every budget.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(names: tuple[str, ...]) -> Iterator[None]:
    """Make packages that are not imported yet look as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_numba() -> None:
    """Import what Numba needs to load compiled code, before a kernel does and scipy comes with it.

    Numba looks for scipy's BLAS, which no kernel here calls: 16 MiB, and a tenth of a second.
    """
    with absent(("scipy",)):
        import numba.np.arraymath  # noqa: F401
