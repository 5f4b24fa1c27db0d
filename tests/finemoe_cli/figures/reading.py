"""Reading figures back."""

from __future__ import annotations

from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes | str) -> list[str]:
    """All texts of an SVG figure, as text."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
