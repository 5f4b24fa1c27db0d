"""Sizes in bytes as people write and read them, in binary (KiB, MiB, GiB) and decimal units (kB, MB, GB)."""

from __future__ import annotations

import re

from offload.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "kb": 1000,
    "m": MIB,
    "mib": MIB,
    "mb": 1000**2,
    "g": GIB,
    "gib": GIB,
    "gb": 1000**3,
    "t": 1 << 40,
    "tib": 1 << 40,
    "tb": 1000**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes meant by ``text``: ``"900MiB"``, ``"1.5 GB"``, ``"2g"`` (a bare letter is binary), ``"1048576"``.

    Raises:
        ConfigError: ``text`` is not a size.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"'{text}' is not a size", "write a number and a unit, such as 900MiB or 1.5GiB")
    try:
        return round(float(match.group(1)) * unit)
    except OverflowError:
        raise ConfigError(f"'{text[:20]}...' is not a size", "there is no memory that large") from None


def format_bytes(count: float) -> str:
    """``count`` bytes with three or so digits and a binary unit: ``"851 MiB"``, ``"1.50 GiB"``."""
    sign = "-" if count < 0 else ""
    size = abs(count)
    if size < KIB:
        return f"{sign}{size:.0f} B"
    for unit, name in ((KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB")):
        scaled = size / unit
        if scaled < 1000 or name == "GiB":
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{sign}{scaled:.{digits}f} {name}"
    raise AssertionError("unreachable")
