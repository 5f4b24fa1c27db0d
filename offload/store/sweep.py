"""Doing something with every expert of a model, on several threads, with a buffer or two for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import TypeVar

from offload.store.blocks import aligned_buffer

Result = TypeVar("Result")

_MOST_THREADS = 4  # disks gain nothing from more, and each takes memory


def sweep(
    experts: Sequence[int],
    buffers: Sequence[int],
    work: Callable[[int, list[memoryview]], Result],
    on_done: Callable[[int, Result], None],
) -> None:
    """Calls ``work(expert, views)`` on threads, and ``on_done(expert, result)`` on the caller's as results come.

    Results come in any order. After an exception, be it from ``work``, from ``on_done`` or Ctrl-C, nothing new is
    begun, what is under way is waited for, and the exception goes on.

    Args:
        experts: Numbers of experts.
        buffers: Bytes of each block-aligned buffer that ``work`` gets.
        work: Does the reading, hashing and writing.
        on_done: Takes what it returned.
    """
    threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1, len(experts)))
    idle: SimpleQueue[list[memoryview]] = SimpleQueue()
    for _ in range(threads):
        idle.put([memoryview(aligned_buffer(nbytes))[:nbytes] for nbytes in buffers])

    def run(expert: int) -> tuple[int, Result]:
        views = idle.get()
        try:
            return expert, work(expert, views)
        finally:
            idle.put(views)

    with ThreadPoolExecutor(threads, thread_name_prefix="finemoe-sweep") as pool:
        try:
            for future in as_completed([pool.submit(run, expert) for expert in experts]):
                on_done(*future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
