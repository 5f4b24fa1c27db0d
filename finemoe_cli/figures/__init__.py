"""Figures, drawn with matplotlib: of simulations, of evaluations and of traces.

``canvas`` is what all have in common, ``lines``, ``policies``, ``latency``, ``layers``, ``maps``, ``entropy``,
``distance``, ``timeline`` and ``sweep`` are one family each, ``sources`` reads what is drawn, and ``gallery`` knows
which figure can be drawn of what. Importing any of them imports matplotlib: do it where something is drawn.
"""

from __future__ import annotations

import os

from profiles.paths import plotting_dir

FORMATS = ("svg", "png", "pdf")
FIGURES = ("policies", "latency", "layers", "timeline", "maps", "entropy", "entropy-steps", "distance")
"""All that ``finemoe plot`` draws."""

# Before matplotlib is imported: a window system is not wanted, and its list of fonts goes where all else is cached.
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("MPLCONFIGDIR", str(plotting_dir()))
