"""The report as a page: whole by itself, and with nothing of a user's text taken for markup."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from finemoe_cli.evaluation.page import page_html
from finemoe_cli.evaluation.report import report_md
from finemoe_cli.figures import FIGURES
from finemoe_cli.figures.canvas import HUES, INK, PAPER, RULE
from finemoe_cli.figures.gallery import draw_all
from tests.finemoe_cli.evaluation.test_report import ROWS, summary
from tests.finemoe_cli.figures.made_up import source
from tests.finemoe_cli.figures.test_gallery import RECALL


class Page(HTMLParser):
    """Tags with their attributes, and the words between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    drawings, _ = draw_all(FIGURES, [source(recall=RECALL)])
    return page_html(report_md(summary(ROWS)), drawings)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_is_whole(page):
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("svg") == len(FIGURES)
    assert [attributes["id"] for tag, attributes in page.tags if tag == "figure"] == list(FIGURES)


def test_nothing_comes_from_outside(page, text):
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import", text)


def test_ids_are_each_there_once_and_lead_somewhere(page, text):
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert used and {one or other for one, other in used} <= set(ids)


def test_it_has_the_tables_of_the_report(page):
    lines = [line for line in report_md(summary(ROWS)).splitlines() if line.startswith("| ")]
    assert [tag for tag, _ in page.tags].count("tr") == len(lines)
    words = {word.strip() for word in page.words}
    assert {"demand@low", "1500.0 / 2300.0 / 2480.0", "A|B, 2 cores, 1 B; Linux 6, x86_64"} <= words


def test_it_is_dark_where_the_reader_is(text):
    assert "prefers-color-scheme: dark" in text
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.search("|".join([INK, RULE, PAPER, *HUES]), svgs)
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part))
        for part in text.split("prefers-color-scheme")[:2]
    )
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", svgs))
    assert {"ink", "rule", "paper", "hue-0"} <= used <= set(light)
    for paper, colours in ((light["paper"], light), ((light | dark)["paper"], light | dark)):
        for name in used - {"paper", "rule"}:
            assert contrast(colours[name], paper) > 2.2, name


def test_a_narrow_screen_scrolls_figures_and_tables_instead_of_squeezing_them(page, text):
    for _, attributes in (one for one in page.tags if one[0] == "svg"):
        least = float(re.search(r"min-width: ([\d.]+)in", str(attributes["style"])).group(1))
        assert 0.8 < least * 72 / float(str(attributes["width"]).removesuffix("pt")) < 1
    style = re.sub(r"\s+", " ", text[text.index("<style>") : text.index("</style>")])
    assert re.search(r"figure {[^}]*overflow-x: auto", style) and re.search(r"\.wide {[^}]*overflow-x: auto", style)
    assert re.search(r"th, td {[^}]*white-space: nowrap", style)


def contrast(one: str, other: str) -> float:
    """The ratio of lightness that WCAG defines."""
    values = [np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255 for colour in (one, other)]
    linear = [np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) for v in values]
    low, high = sorted(float(v @ [0.2126, 0.7152, 0.0722]) for v in linear)
    return (high + 0.05) / (low + 0.05)


def test_what_users_write_is_no_markup():
    def said(**more: Any) -> str:
        values = summary(ROWS)
        values["config"]["asked"]["system"] = "<script>alert(1)</script>"
        return page_html(report_md(values | more), [])

    data = summary(ROWS)["data"] | {"note": "<img src=x onerror=alert(1)>"}
    page = Page(said(data=data))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert any("<script>alert(1)</script>" in word for word in page.words)
