"""Threads that help the decode kernels: one core seldom gets all that memory could give.

How work is shared is told in `kernels.team`. Here are the threads, which sleep whenever nobody decodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.precision import GROUP
from offload.runtime.kernels.places import (
    OWN_AT,
    OWN_RESULTS,
    SEMAPHORE_AT,
    TEAM_CHUNK,
    TEAM_HELPER,
    TEAM_HELPER_ITEMS,
    TEAM_HELPERS,
    TEAM_LEAST,
    TEAM_ROOM,
    TEAM_STOP,
)

MOST_THREADS = 8
"""Threads that multiply, the caller among them. Memory seldom has more to give than so many take."""
SHARED_BYTES = 128 << 10
"""Products of less are not worth the microseconds that sharing takes."""
CHUNK_BYTES = 64 << 10
"""The least that is taken at a time, if rows are not longer: some microseconds of work. While much is left, several
of these are taken (`kernels.team`)."""

_LINE_BYTES = 128

Scratch = tuple[NDArray[np.int16], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def make_scratch(products: int, columns: int) -> Scratch:
    """What `kernels.team.products` needs for so many products at once with vectors of so many numbers."""
    return (
        np.zeros((products, columns), np.int16),
        np.zeros((products, -(-columns // GROUP)), np.int32),
        np.zeros(products, np.float32),
        np.zeros(products, np.int64),
        np.zeros(products, np.int64),
    )


class Team:
    """The helpers of one engine, and the board that they share with the kernels.

    Attributes:
        board: [..] int64, what the kernels are given.
        threads: Threads that multiply, the caller among them.
    """

    def __init__(
        self,
        threads: int,
        kernels: Any = None,
        weights: NDArray[Any] | None = None,
        rows: int = 0,
    ) -> None:
        """Start the helpers.

        Args:
            threads: Threads that multiply, the caller among them; 1 for no helpers, who need no more arguments.
            kernels: The module of a precision.
            weights: An array of the type that its kernels are given.
            rows: Of all matrices of the largest product.
        """
        self.threads = min(threads, MOST_THREADS)
        helpers = self.threads - 1
        items = TEAM_HELPER + helpers * TEAM_HELPER_ITEMS
        self._memory = np.zeros(items + _LINE_BYTES // 8, np.int64)
        begin = -self._memory.ctypes.data % _LINE_BYTES // 8
        self.board: NDArray[np.int64] = self._memory[begin : begin + items]
        self.board[TEAM_LEAST], self.board[TEAM_CHUNK], self.board[TEAM_ROOM] = SHARED_BYTES, CHUNK_BYTES, rows
        self._helpers: list[threading.Thread] = []
        self._results: list[NDArray[np.float32]] = []
        if not helpers:
            return
        assert weights is not None
        self._libc = ctypes.CDLL(None)
        for number in range(helpers):
            # Twice as much, as the last chunk of a matrix has the room of a whole one. Memory comes with use.
            self._results.append(np.empty(2 * rows, np.float32))
            own = TEAM_HELPER + number * TEAM_HELPER_ITEMS + OWN_AT
            self.board[own + OWN_RESULTS] = self._results[number].ctypes.data
            self._libc.sem_init(self._semaphore(number), 0, 0)
            helper = threading.Thread(
                target=_help_when_idle,
                args=(kernels.help_out, weights[:0], self.board, number),
                name=f"finemoe-helper-{number}",
                daemon=True,
            )
            self._helpers.append(helper)
            helper.start()
        self.board[TEAM_HELPERS] = helpers

    def close(self) -> None:
        """Have the helpers end. Nobody uses the kernels with this board any more, or any later."""
        self.board[TEAM_HELPERS], self.board[TEAM_STOP] = 0, 1
        for number in range(len(self._helpers)):
            self._libc.sem_post(self._semaphore(number))
        for helper in self._helpers:
            helper.join()
        self._helpers.clear()

    def _semaphore(self, number: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.board[TEAM_HELPER + number * TEAM_HELPER_ITEMS + SEMAPHORE_AT :].ctypes.data)


def _help_when_idle(help_out: Callable[..., None], *arguments: object) -> None:
    """Help with what nobody else wants of the processors: lanes, screens and other programs come first.

    As their equal a helper would cost the caller half of a core, wherever another program takes the second one.
    """
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    help_out(*arguments)
