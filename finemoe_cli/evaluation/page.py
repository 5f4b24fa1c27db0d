"""The report of a run as one page with its figures (``report.html``), which needs nothing from outside.

``python -m finemoe_cli.evaluation.page RUN`` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from finemoe_cli.evaluation.folder import SUMMARY, Row, RunFolder, read_object
from finemoe_cli.evaluation.report import PAGE, report_md
from finemoe_cli.figures import FIGURES
from finemoe_cli.figures.canvas import HUES, INK, PAPER, RULE, Drawing, render
from finemoe_cli.figures.gallery import draw_all
from finemoe_cli.figures.sources import run_source
from finemoe_cli.figures.timeline import WAITING
from offload.errors import FinemoeError
from profiles.files import write_atomically

_LEAST = 0.85
"""Of its own width, to which a figure shrinks on a narrow screen, and no farther: its letters are small."""
_COLOURS = {"ink": INK, "rule": RULE, "paper": PAPER, "faint": "#5d6675", "wait": WAITING} | {
    f"hue-{number}": hue for number, hue in enumerate(HUES)
}
_IN_THE_DARK = {
    "ink": "#e3e7ee",
    "rule": "#3a4150",
    "paper": "#16191f",
    "faint": "#9aa4b5",
    "wait": "#2c5fc4",
    # Those of `HUES` that would be too dark.
    "hue-0": "#5b9bf5",
    "hue-4": "#d184d6",
    "hue-5": "#f0765a",
    "hue-6": "#93a1b8",
    "hue-8": "#c98f4e",
    "hue-9": "#e3e7ee",
    "hue-10": "#a3c653",
}


def _variables(colours: Mapping[str, str]) -> str:
    return ":root { " + " ".join(f"--{name}: {colour};" for name, colour in colours.items()) + " }"


_STYLE = (
    f"""
:root {{ color-scheme: light dark; }}
{_variables(_COLOURS)}
@media (prefers-color-scheme: dark) {{
  {_variables(_IN_THE_DARK)}
  figure svg image {{ filter: brightness(0.9); }}
}}
"""
    + """body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 "DejaVu Sans", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
.wide:first-of-type td { white-space: normal; }
thead th:empty { padding: 0; border: 0; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid var(--rule); }
figure { margin: 1.5rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: 0.85rem; max-width: 46rem; position: sticky; left: 0; }
"""
)


def write_page(folder: Path, summary: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Draw all that a run has something for, and write the page beside ``report.md``.

    Raises:
        StorageError: It cannot be written, or the run's routing cannot be read.
    """
    drawings, _ = draw_all(FIGURES, [run_source(folder, summary, rows)])
    write_atomically(folder / PAGE, page_html(report_md(summary), drawings))


def page_html(markdown: str, drawings: Sequence[Drawing]) -> str:
    """A report in Markdown, and figures, as a page."""
    body = MarkdownIt("js-default").render(markdown)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = next((line.removeprefix("# ") for line in markdown.splitlines() if line.startswith("# ")), "Evaluation")
    figures = "".join(
        f'<figure id="{one.name}">\n{inline_svg(one)}\n<figcaption>{escape(one.says)}</figcaption>\n</figure>\n'
        for one in drawings
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}<h2>Figures</h2>\n{figures}</body>\n</html>\n"
    )


def inline_svg(drawing: Drawing) -> str:
    """A figure for use within a page: in the colours of the page, and with ids that no other figure has."""
    text = render(drawing.figure, "svg", drawing.name).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{drawing.name}.", text)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    least = f"min-width: {_LEAST * drawing.figure.get_figwidth():.2f}in"
    style = f"stroke-linejoin: round; stroke-linecap: butt; {least}"
    label = f'role="img" aria-label="{escape(drawing.title)}" style="{style}"'
    return text.replace("<svg ", f"<svg {label} ", 1).strip()


def main() -> None:
    """Write the page of the run that is named."""
    try:
        folder = RunFolder(Path(sys.argv[1]))
        write_page(folder.path, read_object(folder.path / SUMMARY), folder.rows())
    except FinemoeError as error:
        raise SystemExit(error.message) from None


if __name__ == "__main__":
    main()
