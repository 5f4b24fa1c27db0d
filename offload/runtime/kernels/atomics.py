"""What threads need that share memory, and Numba does not have: atomic operations, addresses, sleep and a clock.

Atomic operations are sequentially consistent and work on one item of an array of int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

from offload.runtime.kernels.vectors import I64, data

_ORDER = "seq_cst"
_BYTES = 8
_MONOTONIC = 1  # CLOCK_MONOTONIC
_SECOND = 1_000_000_000

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.voidptr))
_sem_post = types.ExternalFunction("sem_post", types.int32(types.voidptr))
_sem_wait = types.ExternalFunction("sem_wait", types.int32(types.voidptr))


def _place(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
    return builder.gep(data(context, builder, signature, arguments, 0), [arguments[1]])


@intrinsic
def peek(typing_context: Any, array: Any, at: Any) -> Any:
    """array[at], as it is now."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.load_atomic(_place(context, builder, signature, arguments), _ORDER, _BYTES)

    return types.int64(array, types.int64), generate


@intrinsic
def put(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """array[at] = value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        builder.store_atomic(arguments[2], _place(context, builder, signature, arguments), _ORDER, _BYTES)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def swap(typing_context: Any, array: Any, at: Any, expected: Any, value: Any) -> Any:
    """array[at] = value if it was `expected`; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        place = _place(context, builder, signature, arguments)
        was_and_done = builder.cmpxchg(place, arguments[2], arguments[3], _ORDER, _ORDER)
        return builder.extract_value(was_and_done, 1)

    return types.boolean(array, types.int64, types.int64, types.int64), generate


@intrinsic
def address(typing_context: Any, array: Any, at: Any) -> Any:
    """Where array[at] lies in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.ptrtoint(_place(context, builder, signature, arguments), I64)

    return types.int64(array, types.int64), generate


def pointer_to(kind: Any) -> Any:
    """A function for kernels that makes an address a pointer to items of the Numba type `kind`, for `carray`."""
    pointer = types.voidptr if kind is None else types.CPointer(kind)

    @intrinsic
    def at_address(typing_context: Any, where: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), generate

    return at_address


_raw = pointer_to(None)


@njit(inline="always")
def nanoseconds(scratch, at):
    """A clock that only goes forward. scratch: int64, two items from `at` on are overwritten."""
    _clock_gettime(types.int32(_MONOTONIC), _raw(address(scratch, at)))
    return scratch[at] * _SECOND + scratch[at + 1]


@njit(inline="always")
def wake(items, at):
    """Add one to the semaphore at items[at]."""
    _sem_post(_raw(address(items, at)))


@njit(inline="always")
def sleep(items, at):
    """Wait until the semaphore at items[at] is above 0, and take one; a signal may end it early."""
    _sem_wait(_raw(address(items, at)))
