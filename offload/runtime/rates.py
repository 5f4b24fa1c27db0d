"""How fast this machine computes with weights: the decode kernels', and torch's, measured in a few seconds.

Rates are medians over many passes, so that a machine which is always busy is measured as it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from offload.files import Progress
from offload.memory.pages import huge_pages
from offload.runtime.compile import compile_kernels
from offload.runtime.cores import computing_threads
from offload.telemetry.probes import HostProbe

_SECONDS = 0.7
_HIDDEN = 2048
_ROWS = 1 << 16
"""A matrix of 256 MiB: more than most caches hold."""
_MOST_ROWS = 1 << 18
"""Of 1 GiB: more than those of servers hold, which virtual machines have a part of. With one of 480 MiB,
256 MiB are read a fifteenth faster than this."""
_FEWEST_ROWS = 16
_ONE = 0x3F80
"""The bits of 1 in bfloat16. Of 1 as a whole number they would mean a number so small that processors compute with
it twenty times as slowly."""
FEW_TOKENS = 3
"""Rows that an expert gets of a short prompt."""
PROMPT_TOKENS = 40


def measure_kernel_rate(
    expert_bytes: int, seconds: float = _SECONDS, rows: int | None = None, progress: Progress | None = None
) -> float:
    """Bytes of weights a second that the decode kernels multiply a vector with, on an engine's threads.

    One product after another, each with as much as two experts: about what is multiplied at a time in a model that
    has experts of this size. Small products are shared at a loss.

    Args:
        expert_bytes: Of one expert in bfloat16.
        rows: Of the matrix; None for as many as 64 experts would have, 256 MiB to 1 GiB.
    """
    rows = rows or _rows_like(expert_bytes)
    compile_kernels(progress)
    from offload.runtime.kernels import bf16
    from offload.runtime.team import Team, make_scratch

    table = _weights(rows)
    each = min(max(2 * expert_bytes // (2 * _HIDDEN), _FEWEST_ROWS), rows)
    x, normed = np.ones(_HIDDEN, np.float32), np.empty(_HIDDEN, np.float32)
    norm, logits = np.full(_HIDDEN, _ONE, np.uint16), np.empty(each, np.float32)
    eps, weights = np.float32(1e-6), table.reshape(-1)
    scratch = make_scratch(1, _HIDDEN)
    team = Team(computing_threads(), bf16, weights, each)

    def multiply(out: NDArray[np.float32]) -> None:
        for first in range(0, rows - each + 1, each):
            bf16.head(x, norm, eps, weights, first * _HIDDEN, normed, scratch, team.board, out)

    try:
        calling = _median(lambda: multiply(logits[:1]), seconds / 10)  # what a kernel would not call from Python
        called = _median(lambda: multiply(logits), seconds)
    finally:
        team.close()
    # One that was interrupted while it did nothing is not to say that products take no time.
    return rows // each * each * 2 * _HIDDEN / max(called - calling, called / 2)


def _rows_like(expert_bytes: int) -> int:
    """Rows of a matrix of as many bytes as 64 experts, between the two limits; of no more than an eighth of the
    free memory, but the smaller limit at least."""
    row = 2 * _HIDDEN
    free = HostProbe().read().available_bytes or 0
    return max(min(64 * expert_bytes // row, free // 8 // row, _MOST_ROWS), _ROWS)


def measure_prompt_rates(expert_bytes: int, seconds: float = _SECONDS, rows: int = _ROWS) -> tuple[float, float]:
    """What torch does with prompts, on all its threads, in bfloat16.

    Returns:
        Bytes of weights a second that a few tokens are multiplied with, in products of one expert's matrix, and
        operations a second for a short prompt.
    """
    import torch
    from torch.nn.functional import linear

    torch.set_num_threads(computing_threads())  # As the engine does.
    weights = torch.from_numpy(_weights(rows)).view(torch.bfloat16)
    few = torch.ones(FEW_TOKENS, _HIDDEN, dtype=torch.bfloat16)
    prompt = torch.ones(PROMPT_TOKENS, _HIDDEN, dtype=torch.bfloat16)
    each = min(max(expert_bytes // 2 // (2 * _HIDDEN), _FEWEST_ROWS), rows)
    experts = [weights[first : first + each] for first in range(0, rows, each)]

    def multiply() -> None:
        for expert in experts:
            linear(few, expert)

    with torch.inference_mode():
        rate = weights.nbytes / _median(multiply, seconds)
        operations = 2 * PROMPT_TOKENS * weights.numel() / _median(lambda: linear(prompt, weights), seconds)
    return rate, operations


def _weights(rows: int) -> NDArray[np.uint16]:
    """[rows, _HIDDEN] bfloat16 bits, lying as a model's weights do."""
    nbytes = 2 * rows * _HIDDEN
    weights = huge_pages(nbytes)[:nbytes].view(np.uint16).reshape(rows, _HIDDEN)
    weights[:] = _ONE
    return weights


def _median(work: Callable[[], object], seconds: float) -> float:
    """Seconds that `work` takes; a first time does not count."""
    work()
    times: list[float] = []
    end = perf_counter() + seconds
    while not times or perf_counter() < end:
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    return statistics.median(times)
