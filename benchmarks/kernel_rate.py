"""How near the decode kernels come to the speed of memory: products of one vector with matrices of each precision.

    python -m benchmarks.kernel_rate [--threads 2] [--megabytes 1024] [--seconds 1] [--rounds 5] [--json FILE]

For each precision and each shape a buffer that no cache holds is filled with matrices, which are multiplied with
a vector one after another, as a decoded token does: on one thread, or shared among --threads. Quoted are bytes of
weights a second over the bytes a second at which as many threads sum 64-bit words of the buffer. Both are measured
in turns, so that other work on the machine slows both; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from offload.memory.pages import huge_pages
from offload.precision import PRECISIONS, Precision, matrix_bytes
from offload.runtime.decode import ITEMS
from offload.runtime.kernels import quantised  # noqa: F401  What it adds to matvec.
from offload.runtime.kernels.matvec import OPTIONS
from offload.runtime.kernels.team import product
from offload.runtime.team import Team, make_scratch
from offload.store.quantise import quantise

SHAPES = {
    "demo, expert up": (384, 576),
    "demo, expert down": (576, 192),
    "demo, attention": (960, 576),
    "demo, head": (49152, 576),
    "Qwen1.5-MoE, expert up": (2816, 2048),
    "Qwen1.5-MoE, expert down": (2048, 1408),
    "Qwen1.5-MoE, attention": (6144, 2048),
    "Qwen3-30B-A3B, expert up": (1536, 2048),
    "Qwen3-30B-A3B, expert down": (2048, 768),
}
_UNCACHED = {**OPTIONS, "cache": False}


@njit(**_UNCACHED)
def sum_words(words):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for i in range(words.shape[0]):
        total += words[i]
    return total


@njit(**_UNCACHED)
def multiply(weights, stride, count, rows, x, out, scratch, team):  # type: ignore[no-untyped-def]
    for number in range(count):
        product(weights, number * stride, rows, x, out, scratch, team)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--megabytes", type=int, default=1024, help="of the buffer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    buffer = huge_pages(options.megabytes << 20)
    buffer[:] = 0  # so that it is memory of its own and not the page of zeros
    words = np.array_split(buffer.view(np.uint64), options.threads)
    pool = ThreadPoolExecutor(options.threads)
    rows_of_json = []
    raws = []
    print(f"{'':28}" + "".join(f"{precision:>18}" for precision in PRECISIONS))
    for name, shape in SHAPES.items():
        line = f"{name:28}"
        for precision in PRECISIONS:
            work, nbytes, team = _work(buffer, precision, shape, options.threads)
            pairs = [
                (
                    _rate(work, nbytes, options.seconds),
                    _rate(lambda: list(pool.map(sum_words, words)), len(buffer), options.seconds),
                )
                for _ in range(options.rounds)
            ]
            team.close()
            ratio = statistics.median(kernel / raw for kernel, raw in pairs)
            rate = statistics.median(kernel for kernel, _ in pairs)
            raws += [raw for _, raw in pairs]
            rows_of_json.append({"matrix": name, "precision": precision, "bytes_per_s": rate, "of_raw": ratio})
            line += f"{rate / 1e9:8.1f} GB/s {ratio:4.0%}"
        print(line, flush=True)
    print(f"raw reads of memory, threads {options.threads}: {statistics.median(raws) / 1e9:.1f} GB/s")
    if options.json:
        options.json.write_text(json.dumps(rows_of_json, indent=1), encoding="utf-8")


def _work(
    buffer: NDArray[np.uint8], precision: Precision, shape: tuple[int, int], threads: int
) -> tuple[Callable[[], object], int, Team]:
    """What multiplies with all matrices that fit into the buffer, their bytes, and who helps."""
    rows, columns = shape
    nbytes = matrix_bytes(precision, rows, columns)
    count = max(len(buffer) // nbytes, 1)
    weights = np.random.default_rng(0).standard_normal(shape, np.float32)
    for number in range(count):
        into = buffer[number * nbytes : (number + 1) * nbytes]
        if number:
            into[:] = buffer[:nbytes]
        else:
            quantise(precision, (weights.view(np.uint32) >> 16).astype(np.uint16), into)
    items = buffer.view(ITEMS[precision])
    stride = nbytes // items.itemsize
    x = np.random.default_rng(1).standard_normal(columns, np.float32)
    out, scratch = np.zeros(rows, np.float32), make_scratch(1, columns)
    kernels = importlib.import_module(f"offload.runtime.kernels.{precision}")
    team = Team(threads, kernels, items, rows)
    return lambda: multiply(items, stride, count, rows, x, out, scratch, team.board), count * nbytes, team


def _rate(work: Callable[[], object], nbytes: int, seconds: float) -> float:
    """Bytes a second, the best of what fits into the time; a first time does not count."""
    work()
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return nbytes / best


if __name__ == "__main__":
    main()
