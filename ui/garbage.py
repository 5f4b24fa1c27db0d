"""The garbage collector of a program that draws.

What was imported and set up stays. Looking through it for garbage takes a tenth of the time until the first
picture, and later on some 60 ms every few seconds, in which no key is answered. So such a program turns it off
before it begins, and has it `settle` when all is there.
"""

from __future__ import annotations

import gc

_THRESHOLDS = 5_000, 3, 2
"""Objects that come together before the youngest are looked through: what a few pictures are made of. And how often
that is done before the next older are, and then all: messages that were scrolled away from are old garbage, and
with Python's own numbers 230,000 objects of it came together in a hundred pages.
"""


def settle() -> None:
    """Leave what is there alone from now on, and collect what comes. Does nothing where the collector is on."""
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        gc.enable()
