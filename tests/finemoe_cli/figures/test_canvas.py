"""What all figures have in common."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from finemoe_cli.figures.canvas import FORMATS, SHADES, looks_of, render
from finemoe_cli.figures.lines import Panel, Series, draw_lines
from offload.config import POLICIES
from tests.finemoe_cli.conftest import ROOT
from tests.finemoe_cli.figures.reading import SVG, texts

PANEL = Panel("Costs in $, 50% & <more>", ["a", "b"], [Series("one", [1, 2]), Series("two", [3, None])])
PROGRAM = """
import sys
from pathlib import Path
from finemoe_cli.figures.canvas import render
from finemoe_cli.figures.lines import Panel, Series, draw_lines
figure = draw_lines("Title", [Panel("Panel", ["a", "b"], [Series("one", [1, 2])])])
for kind in ("svg", "png", "pdf"):
    Path(sys.argv[1], f"figure.{kind}").write_bytes(render(figure, kind, "x"))
assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""


def test_words_stay_words():
    found = texts(render(draw_lines("A title", [PANEL]), "svg", "x"))
    assert {"A title", "Costs in $, 50% & <more>", "one", "two", "a", "b"} <= set(found)


@pytest.mark.parametrize(("kind", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_every_format(kind, magic):
    assert kind in FORMATS
    assert render(draw_lines("A title", [PANEL]), kind, "x").startswith(magic)


def test_the_same_figure_is_the_same_file_whatever_the_users_settings(tmp_path):
    """Also in another process, in the dark style of a matplotlibrc, with a backend that there is not."""
    made = []
    for number, settings in enumerate(["", "axes.facecolor: black\nfont.size: 20\nbackend: agg\n"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "matplotlibrc").write_text(settings)
        environment = os.environ | {
            "MPLCONFIGDIR": str(folder),
            "MATPLOTLIBRC": str(folder),
            "MPLBACKEND": "no-such-backend",
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": str(number),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        made.append([(folder / f"figure.{kind}").read_bytes() for kind in FORMATS])
    assert made[0] == made[1]


def test_ids_of_two_figures_differ():
    """References to markers and clips must not meet those of another figure in the same page."""

    def own(name: str) -> set[str]:
        root = ElementTree.fromstring(render(draw_lines("A title", [PANEL]), "svg", name))
        return {use.attrib["{http://www.w3.org/1999/xlink}href"] for use in root.iter(f"{SVG}use")}

    assert own("one") and not own("one") & own("two")


def test_looks_differ_without_their_hues():
    """Any two of the policies differ by more than hue: in marker, dash or hatch."""
    looks = looks_of(POLICIES)
    for one, other in combinations(looks.values(), 2):
        assert one.hue != other.hue
        assert (one.marker, str(one.dash)) != (other.marker, str(other.dash))
    assert looks_of(["finemoe"], POLICIES)["finemoe"] == looks["finemoe"]


def test_shades_fall_evenly_in_grey():
    import matplotlib as mpl

    colours = mpl.colormaps[SHADES](np.linspace(0, 1, 64))[:, :3]
    grey = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) < 0).all() and grey[0] - grey[-1] > 0.6


def test_ink_is_on_paper():
    image = imread(io.BytesIO(render(draw_lines("A title", [PANEL]), "png", "x")))
    assert tuple(image[0, 0, :3]) == to_rgb("white")
    assert image[..., :3].mean(axis=-1).min() < 0.2


def test_names_of_modules_are_those_of_the_package():
    """The package says which modules it has."""
    import finemoe_cli.figures as package

    folder = Path(package.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert [name for name in sorted(names) if f"``{name}``" not in str(package.__doc__)] == []


def test_a_panel_ends_at_its_highest() -> None:
    """Lines beyond leave it; where none goes there, it ends where they do."""
    for values, highest, top in (([1, 9], 2.0, 2.0), ([1, 9], None, 9.0), ([0.2, 0.4], 2.0, 0.4)):
        panel = Panel("Panel", ["a", "b"], [Series("one", values)], highest)
        axes = draw_lines("Title", [panel]).axes[0]
        assert axes.get_ylim()[0] == 0
        assert top <= axes.get_ylim()[1] < 1.2 * top
        assert axes.lines[0].get_clip_on() is (highest is not None)
