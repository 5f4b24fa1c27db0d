"""Products that several threads share: the same to the last bit, whoever comes, goes or stops in the middle."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from offload.precision import PRECISIONS, Precision, matrix_bytes
from offload.runtime import team as team_module
from offload.runtime.compile import compile_kernels
from offload.runtime.decode import ITEMS
from offload.runtime.kernels import quantised  # noqa: F401  What it adds to products.
from offload.runtime.kernels.atomics import peek, swap
from offload.runtime.kernels.matvec import OPTIONS
from offload.runtime.kernels.places import (
    DONE_AT,
    RUN_AT,
    TEAM_HELPER,
    TEAM_HELPERS,
    TEAM_LEAST,
    TEAM_PRODUCT,
    TEAM_STOP,
)
from offload.runtime.kernels.team import _compute_last, products
from offload.runtime.team import Team, make_scratch
from offload.store.quantise import quantise

SHAPES = ((16, 32), (48, 96), (320, 64), (176, 1408))
ALONE = Team(1).board


@njit(**{**OPTIONS, "cache": False})
def multiply(weights, number, rows, columns, x, out, scratch, team):
    products(weights, number, rows, columns, x, out, scratch, team)


@njit(**{**OPTIONS, "cache": False})
def take_a_chunk_and_stop(team):
    """A helper that the kernel stops with a chunk in its hands. Returns what it would swap when it goes on."""
    while True:
        run = peek(team, TEAM_HELPER + RUN_AT)
        if (run >> 16) & 0xFFFF < run & 0xFFFF and swap(team, TEAM_HELPER + RUN_AT, run, run - 1):
            return run >> 32 << 32


@njit(**{**OPTIONS, "cache": False})
def work_take_two_and_stop(like, team):
    """A helper that computes what it takes first, and is stopped with two more chunks. Returns the same."""
    while True:
        run = peek(team, TEAM_HELPER + RUN_AT)
        if (run & 0xFFFF) - ((run >> 16) & 0xFFFF) < 8:
            continue
        _compute_last(like, team, TEAM_HELPER, 0, run)
        done, now = peek(team, TEAM_HELPER + DONE_AT), peek(team, TEAM_HELPER + RUN_AT)
        several = (now & 0xFFFF) - ((now >> 16) & 0xFFFF) >= 2 and done & 0xFFFF > 0
        if several and run >> 32 == now >> 32 == done >> 32 and swap(team, TEAM_HELPER + RUN_AT, now, now - 2):
            return done


@njit(**{**OPTIONS, "cache": False})
def go_on(team, done, taken):
    """Whether what that helper has computed would count."""
    return swap(team, TEAM_HELPER + DONE_AT, done, done + taken)


class Products:
    """Several matrices in one buffer, the vectors to multiply them with, and what one thread makes of them."""

    def __init__(self, precision: Precision, rows: int, columns: int, number: int, same: bool) -> None:
        compile_kernels(precision=precision)
        generator = np.random.default_rng(rows * columns + number)
        nbytes = matrix_bytes(precision, rows, columns)
        memory = np.zeros(nbytes * number + 64, np.uint8)
        begin = -memory.ctypes.data % 64
        content = memory[begin : begin + nbytes * number]
        for k in range(number):
            weights = generator.standard_normal((rows, columns), np.float32).view(np.uint32) >> 16
            quantise(precision, weights.astype(np.uint16), content[k * nbytes : (k + 1) * nbytes])
        self.kernels: Any = importlib.import_module(f"offload.runtime.kernels.{precision}")
        self.weights = content.view(ITEMS[precision])
        self.rows, self.columns, self.number = rows, columns, number
        # Vectors and results have more room than they need, as the decoder's have.
        self.x = generator.standard_normal((1 if same else number, columns + 32), np.float32)
        self.scratch = make_scratch(number, columns + 32)
        places = generator.permutation(number)
        self.scratch[3][:] = places * (nbytes // self.weights.itemsize)
        self.scratch[4][:] = generator.permutation(number)
        self.expected = self.run(ALONE)

    def run(self, board: np.ndarray) -> np.ndarray:
        out = np.full((self.number, self.rows + 16), np.nan, np.float32)
        multiply(self.weights, self.number, self.rows, self.columns, self.x, out, self.scratch, board)
        assert np.isnan(out[:, self.rows :]).all()
        return out[:, : self.rows].view(np.uint32)


@contextmanager
def team_of(threads: int, these: Products, least: int, chunk: int) -> Iterator[Team]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team_module, "SHARED_BYTES", least)
        patch.setattr(team_module, "CHUNK_BYTES", chunk)
        team = Team(threads, these.kernels, these.weights, these.number * these.rows)
    try:
        yield team
    finally:
        team.close()


def run_anew(these: Products, team: Team) -> np.ndarray:
    """As `Products.run`, with nothing right left from before where helpers put their results."""
    for results in team._results:
        results.fill(np.nan)
    return these.run(team.board)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_it_does_not_show_who_computed_what(precision: Precision, rows: int, columns: int) -> None:
    for number, same in ((1, True), (3, True), (4, False)):
        these = Products(precision, rows, columns, number, same)
        for threads, chunk in ((2, 64), (3, 4096), (5, 1)):
            with team_of(threads, these, 0, chunk) as team:
                for _ in range(50):
                    np.testing.assert_array_equal(run_anew(these, team), these.expected)


@settings(max_examples=60, deadline=None)
@given(
    precision=st.sampled_from(PRECISIONS),
    tiles=st.integers(1, 20),
    groups=st.integers(1, 8),
    number=st.integers(1, 6),
    same=st.booleans(),
    threads=st.integers(1, 4),
    least=st.integers(0, 1 << 16),
    chunk=st.integers(1, 1 << 14),
)
def test_products_of_any_size_are_whole(
    precision: Precision, tiles: int, groups: int, number: int, same: bool, threads: int, least: int, chunk: int
) -> None:
    these = Products(precision, 16 * tiles, 32 * groups, number, same)
    with team_of(threads, these, least, chunk) as team:
        for _ in range(3):
            np.testing.assert_array_equal(run_anew(these, team), these.expected)


def test_helpers_do_take_a_part() -> None:
    these = Products("bf16", 176, 1408, 8, True)
    with team_of(2, these, 0, 4096) as team:
        chunks, taken = these.number * 176, 0  # A chunk is a row here.
        while not taken:  # On a busy machine it may take some time until one comes.
            these.run(team.board)
            taken = chunks - int(team.board[TEAM_HELPER + RUN_AT] & 0xFFFF)
        assert 0 < taken < chunks


def test_nobody_waits_for_a_helper_that_never_comes() -> None:
    these = Products("bf16", 320, 64, 3, True)
    with team_of(2, these, 0, 256) as team:
        team.close()
        team.board[TEAM_HELPERS] = 1
        np.testing.assert_array_equal(these.run(team.board), these.expected)


@pytest.mark.parametrize("works", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_helper_took_that_was_stopped_is_taken_away(precision: Precision, works: bool) -> None:
    these = Products(precision, 320, 64, 3, False)
    with team_of(2, these, 0, 256) as team:
        team.close()  # Another one takes the helper's place.
        team.board[TEAM_HELPERS], team.board[TEAM_STOP] = 1, 0
        taken = 0
        for _ in range(20):
            results: list[int] = []

            def help_and_stop(results: list[int] = results) -> None:
                if works:
                    results.append(work_take_two_and_stop(these.weights[:0], team.board))
                else:
                    results.append(take_a_chunk_and_stop(team.board))

            stopped = threading.Thread(target=help_and_stop)
            stopped.start()
            while not results:  # It may come too late for a product that takes no time.
                np.testing.assert_array_equal(run_anew(these, team), these.expected)
            stopped.join()
            taken += 1
            assert not go_on(team.board, results[0], 2 if works else 1)
        assert taken == 20
        team.board[TEAM_HELPERS] = 0


def test_what_helpers_have_no_room_for_is_not_shared() -> None:
    these = Products("bf16", 320, 64, 3, True)
    team = Team(2, these.kernels, these.weights, 3 * 320 - 1)
    team.board[TEAM_LEAST] = 0
    try:
        for _ in range(20):
            np.testing.assert_array_equal(these.run(team.board), these.expected)
        assert team.board[TEAM_PRODUCT] == 0
    finally:
        team.close()


def test_helpers_sleep_and_wake_again() -> None:
    these = Products("bf16", 320, 64, 2, True)
    with team_of(3, these, 0, 512) as team:
        for pause in (0.0, 0.01, 0.0001, 0.002, 0.01):
            threading.Event().wait(pause)
            np.testing.assert_array_equal(these.run(team.board), these.expected)


def test_helpers_end_with_their_team() -> None:
    these = Products("bf16", 48, 96, 1, True)
    with team_of(4, these, 0, 512) as team:
        assert team.threads == 4
        assert sum(thread.name.startswith("finemoe-helper") for thread in threading.enumerate()) == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("finemoe-helper")]
    team.close()


def test_there_are_not_more_threads_than_memory_has_work_for() -> None:
    assert Team(1).threads == 1
    these = Products("bf16", 48, 96, 1, True)
    with team_of(100, these, 0, 512) as team:
        assert team.threads == team_module.MOST_THREADS
        np.testing.assert_array_equal(these.run(team.board), these.expected)
