"""Pages of libraries that only starting needed are given back, and come back when they are needed."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offload.runtime.libraries import RETURNING_BYTES, _written_pages
from offload.units import MIB

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, re, threading
from pathlib import Path
import torch
from offload.runtime.libraries import give_back_libraries

def of_files():
    return int(re.search(r"RssFile:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def product():
    return torch.arange(12.0).view(3, 4) @ torch.ones(4, 2)

expected = product().tolist()
stop = threading.Event()
def work():
    while not stop.is_set():
        assert product().tolist() == expected
worker = threading.Thread(target=work)
worker.start()
before = of_files()
given = [give_back_libraries() for _ in range(20)][-1]
stop.set()
worker.join()
assert give_back_libraries()
after = of_files()
same = product().tolist() == expected and json.loads(json.dumps(expected)) == expected
print(json.dumps({"given": given, "before": before, "after": after, "same": same}))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libraries are given back on Linux only")


def test_the_code_of_libraries_leaves_and_comes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["given"] and found["same"]
    assert found["before"] - found["after"] > 32 * MIB
    assert found["after"] < RETURNING_BYTES


def test_a_mapping_of_a_file_that_was_written_to_is_known(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:

        def pages() -> set[tuple[int, int]]:
            """Of this file, those that the kernel would lose."""
            lines = Path("/proc/self/maps").read_text().splitlines()
            ours = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
            return {(int(a, 16), int(b, 16)) for a, b in ours} & set(_written_pages())

        assert mapping[0] == 0 and not pages()
        mapping[0] = 1
        assert len(pages()) == 1
