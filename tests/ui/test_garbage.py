"""What was set up is left alone by the garbage collector, in a process of its own: frozen objects stay so."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, sys
if sys.argv[1] == "off":
    gc.disable()
from ui.garbage import settle
settle()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""


@pytest.mark.parametrize(("before", "after"), [("off", "True True"), ("on", "True False")])
def test_only_who_turned_it_off_settles(before: str, after: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, before], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == after
