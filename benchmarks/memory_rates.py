"""What memory gives on this machine: fresh and used, in order and in jumps, and while the disk is read.

    python -m benchmarks.memory_rates [--gigabytes 4] [--threads 2] [--passes 6] [--file FILE] [--seconds 3]

A buffer is taken from the system and read again and again, by threads that sum 64-bit words of it; then in jumps,
16 MiB at a time, as a token goes through experts; then in order again while another thread reads --file (say, a
shard of a model) past the page cache into another buffer. Every figure is bytes a second of all threads together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernel_rate import sum_words
from offload.memory.pages import huge_pages

_READ = 16 << 20
Words = NDArray[np.uint64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=int, default=4, help="of the buffer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--file", type=Path, help="read from it meanwhile; larger than 16 MiB")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement beside the disk")
    options = parser.parse_args()
    sum_words(np.zeros(8, np.uint64))
    pool = ThreadPoolExecutor(options.threads)

    begin = time.perf_counter()
    buffer = huge_pages(options.gigabytes << 30)
    buffer[:] = 1
    print(f"taken from the system: {_gb(len(buffer), time.perf_counter() - begin)}")
    parts = np.array_split(buffer.view(np.uint64), 64 * options.threads)
    print("in order, pass by pass: " + ", ".join(_summed(pool, parts) for _ in range(options.passes)))
    pieces = buffer.view(np.uint64).reshape(-1, _READ // 8)
    jumps = [
        part
        for at in np.random.default_rng(0).permutation(len(pieces))
        for part in np.array_split(pieces[at], options.threads)
    ]
    print("in jumps: " + ", ".join(_summed(pool, jumps) for _ in range(3)))
    if options.file:
        for _ in range(3):
            alone = _for_a_while(pool, parts, options.seconds)
            with _Reader(options.file) as reader:
                beside = _for_a_while(pool, parts, options.seconds)
            print(f"in order {alone}; while the disk is read {beside}, disk {reader.rate}")


def _gb(nbytes: float, seconds: float) -> str:
    return f"{nbytes / seconds / 1e9:.1f} GB/s"


def _summed(pool: ThreadPoolExecutor, parts: Sequence[Words]) -> str:
    begin = time.perf_counter()
    list(pool.map(sum_words, parts))
    return _gb(sum(part.nbytes for part in parts), time.perf_counter() - begin)


def _for_a_while(pool: ThreadPoolExecutor, parts: Sequence[Words], seconds: float) -> str:
    """The median of the passes that fit into the time."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        list(pool.map(sum_words, parts))
        times.append(time.perf_counter() - begin)
    return _gb(sum(part.nbytes for part in parts), statistics.median(times))


class _Reader:
    """Reads random pieces of a file past the page cache, from entering to leaving. `rate` is what it came to."""

    def __init__(self, path: Path) -> None:
        self.rate = ""
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._pieces = os.fstat(self._file).st_size // _READ
        self._into = huge_pages(_READ)[:_READ]
        self._into[:] = 1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._file)

    def _read(self) -> None:
        random = np.random.default_rng()
        nbytes, begin = 0, time.perf_counter()
        while not self._ended.is_set():
            nbytes += os.preadv(self._file, [self._into], int(random.integers(self._pieces)) * _READ)
        self.rate = _gb(nbytes, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
