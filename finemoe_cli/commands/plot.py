"""``finemoe plot``: figures of evaluations and traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finemoe_cli import options
from finemoe_cli.figures import FIGURES, FORMATS
from finemoe_cli.lists import chosen
from finemoe_cli.output import Output
from offload.errors import ConfigError, FinemoeError

app = typer.Typer()

_EPILOG = """
[bold]Examples[/]

  finemoe plot runs/policies
  finemoe plot runs/policies --figure policies,latency --format pdf --out paper
  finemoe plot runs/sample runs/lmsys --figure entropy,entropy-steps --out entropies
  finemoe plot demo.trace --figure distance
"""


def complete_figure() -> list[str]:
    """Figures, for the shell."""
    return list(FIGURES)


def complete_format() -> list[str]:
    """Formats, for the shell."""
    return list(FORMATS)


@app.command(epilog=_EPILOG)
def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|TRACE...", help="Folders that finemoe eval wrote, and recorded traces."),
    ],
    figure: Annotated[
        str | None,
        typer.Option(
            "--figure",
            metavar="NAMES",
            help=f"{', '.join(FIGURES)}; with commas between. All that can be drawn if not given.",
            autocompletion=complete_figure,
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAMES",
            help="svg, png or pdf, with commas between.",
            autocompletion=complete_format,
        ),
    ] = "svg",
    request: Annotated[
        str | None,
        typer.Option(
            "--request",
            metavar="CONVERSATION/TURN",
            help="What timeline shows; the request that took a middling time if not given.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where to write; figures in the folder of the run, or here if there are more or it is a trace.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace files that are there.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw figures of evaluations and traces, each with a table of exactly what it shows.

    A figure that these runs and traces have nothing for is left out, with the reason.
    """
    output = Output(as_json=as_json, quiet=quiet)
    names = chosen(figure, FIGURES, "figure") if figure is not None else list(FIGURES)
    kinds = chosen(formats, FORMATS, "format")
    folder = out or (sources[0] / "figures" if len(sources) == 1 and sources[0].is_dir() else Path("figures"))
    with output.waiting("starting"):
        from finemoe_cli.figures.gallery import draw_all, files_of, write_drawing
        from finemoe_cli.figures.sources import read_sources
    if not force:
        for path in (path for name in names for path in files_of(name, folder, kinds)):
            if path.exists():
                raise ConfigError(f"{path} is there already", "choose another folder with --out, or say --force")
    with output.progress(transient=True, lines=False) as bars:
        found = read_sources(sources, bars or _nobody, recall="distance" in names)
    with output.waiting("drawing"):
        drawings, left_out = draw_all(names, found, request)
    for name, why in left_out.items():
        output.note(f"{name} is left out: {why}")
    if not drawings:
        raise FinemoeError(
            "there is nothing to draw", f"{names[0]}: {left_out[names[0]]}" if len(names) == 1 else "see above"
        )
    written = []
    for drawing in drawings:
        with output.waiting(f"writing {drawing.name}"):
            written.append((drawing, write_drawing(drawing, folder, kinds)))
    if as_json:
        output.json(
            {
                "out": str(folder),
                "figures": [
                    {"name": one.name, "title": one.title, "says": one.says, "files": [str(path) for path in files]}
                    for one, files in written
                ],
                "left_out": [{"name": name, "why": why} for name, why in left_out.items()],
            }
        )
        return
    output.table(["figure", "files"], [[one.name, " ".join(path.name for path in files)] for one, files in written])
    output.note(f"written to {folder}")


def _nobody(stage: str, done: int, total: int) -> None:
    """Where nothing is shown."""
