"""What a token takes by the memory that it may use: measured, forecast, and at best."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from finemoe_cli.bench.sweep import COLUMNS, Point
from finemoe_cli.figures.canvas import INK, Drawing, Look, legend, looks_of, panels, styled
from offload.units import GIB

_NAMES = ("measured", "forecast", "bound: max(compute, MIN's bytes / disk rate)")


def draw_sweep(points: Sequence[Point], what: str) -> Drawing:
    """The latency-memory curve of a sweep, and the hit rate beside it.

    Args:
        what: Which model, with which policy.
    """
    with styled():
        return _draw(points, what)


def _draw(points: Sequence[Point], what: str) -> Drawing:
    title = f"Time a token by memory: {what}"
    figure, (left, right) = panels(title, 2, 2, width=4.4, height=3.0)
    looks = looks_of(_NAMES)
    memory = [point.budget_bytes / GIB for point in points]
    values: tuple[Sequence[float | None], ...] = (
        [1000 * point.measured_s for point in points],
        [None if point.forecast_s is None else 1000 * point.forecast_s for point in points],
        [1000 * point.bound_s for point in points],
    )
    for name, series in zip(_NAMES, values, strict=True):
        _line(left, memory, series, looks[name])
    spread = [1000 * point.measured_sd_s for point in points]
    left.errorbar(memory, [1000 * p.measured_s for p in points], yerr=spread, fmt="none", ecolor=INK, capsize=2)
    left.set_title("milliseconds a token")
    left.set_ylim(bottom=0)
    right.set_title("hit rate")
    right.set_ylim(0, 1.02)
    _line(right, memory, [point.hit_rate for point in points], looks[_NAMES[0]])
    _line(right, memory, [point.forecast_hit_rate for point in points], looks[_NAMES[1]])
    for panel in (left, right):
        panel.set_xlabel("memory budget, GiB")
        panel.set_xlim(0, 1.04 * memory[-1])
    legend(figure, _NAMES, looks)
    least, most = points[0], points[-1]
    says = (
        f"With {least.budget} a token takes {1000 * least.measured_s:.0f} ms, "
        f"with {most.budget} {1000 * most.measured_s:.0f} ms; at best {1000 * least.bound_s:.0f} and "
        f"{1000 * most.bound_s:.0f}."
    )
    rows = [[getattr(point, name) for name in COLUMNS] for point in points]
    return Drawing("sweep", title, says, figure, COLUMNS, rows)


def _line(panel: Axes, places: Sequence[float], values: Sequence[float | None], look: Look) -> None:
    kept = [(x, y) for x, y in zip(places, values, strict=True) if y is not None]
    panel.plot([x for x, _ in kept], [y for _, y in kept], **look.line)
