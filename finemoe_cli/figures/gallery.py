"""Which figures there are, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from finemoe_cli.figures import FIGURES
from finemoe_cli.figures.canvas import Drawing, render, styled
from finemoe_cli.figures.distance import draw_distance
from finemoe_cli.figures.entropy import draw_entropy, draw_entropy_steps
from finemoe_cli.figures.latency import draw_latency
from finemoe_cli.figures.layers import draw_layers
from finemoe_cli.figures.maps import draw_maps
from finemoe_cli.figures.policies import draw_policies
from finemoe_cli.figures.sources import Source
from finemoe_cli.figures.timeline import draw_timeline
from profiles.files import write_atomically

Draw = Callable[[Sequence[Source]], Drawing | str]


def draw_all(
    names: Sequence[str], sources: Sequence[Source], request: str | None = None
) -> tuple[list[Drawing], dict[str, str]]:
    """The figures, and of those that cannot be drawn of these sources, why not.

    Args:
        names: Of `FIGURES`.
        request: See `draw_timeline`.

    Raises:
        NotFound: There is no such request.
    """
    known: Mapping[str, Draw] = {
        "policies": draw_policies,
        "latency": draw_latency,
        "layers": draw_layers,
        "timeline": partial(draw_timeline, request=request),
        "maps": draw_maps,
        "entropy": draw_entropy,
        "entropy-steps": draw_entropy_steps,
        "distance": draw_distance,
    }
    assert set(known) == set(FIGURES)
    drawings, left_out = [], {}
    for name in names:
        with styled():
            found = known[name](sources)
        if isinstance(found, str):
            left_out[name] = found
        else:
            drawings.append(found)
    return drawings, left_out


def files_of(name: str, folder: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """Where a figure goes: one file for each format, and the table of what it shows."""
    yield from (folder / f"{name}.{kind}" for kind in (*kinds, "csv"))


def write_drawing(drawing: Drawing, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Write a figure in all formats, and its table. Returns the files.

    Raises:
        StorageError: They cannot be written.
    """
    files = list(files_of(drawing.name, folder, kinds))
    for kind, path in zip(kinds, files, strict=False):
        write_atomically(path, render(drawing.figure, kind, drawing.name))
    write_atomically(files[-1], drawing.table())
    return files
