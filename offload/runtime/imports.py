"""Importing transformers without the parts that only training and compiling need.

The interpreter's own size counts against every budget, and the parts named here make up a third of it: torch's
compiler and distributed packages, and optional packages that transformers looks for. transformers works without
each of them (it asks before it uses them), so while it is being imported they are made to look absent. Nothing
stays changed afterwards, except that transformers knows no distributed training in this process.

Measured on Linux with torch 2.13: 368 MiB resident after a plain import, 245 MiB after this one.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from offload.absent import absent
from offload.runtime.module_lists import kept_module_lists
from offload.units import MIB

MATMUL_PLANS = "64"
"""Shapes of matrix products whose machine code is kept; `offload.memory.budget` plans for them."""

_OPTIONAL = ("scipy", "sklearn", "pandas", "PIL", "matplotlib", "sentencepiece")


def import_transformers() -> None:
    """Import transformers and what the engine uses of it; does nothing special if it is imported already."""
    # OpenMP's threads spin while they wait for one another: with a second busy process on the machine a product
    # of two threads takes ten times as long. Sleeping costs a few microseconds. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch and oneDNN keep the machine code of every shape of matrix product, a few hundred KiB each, a thousand of
    # them: every count of rows that some expert gets is a shape. A long prompt would take half a gigabyte.
    os.environ.setdefault("LRU_CACHE_CAPACITY", MATMUL_PLANS)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", MATMUL_PLANS)
    _return_large_blocks_at_once()
    if "transformers" in sys.modules:
        return
    with _without_garbage_collection():
        _import()


def _import() -> None:
    with _without_meta_registrations():
        import torch
    import torch.distributed

    with (
        absent(_OPTIONAL),
        replaced(torch.compiler, "disable", _unchanged),
        replaced(torch.distributed, "is_available", lambda: False),
        _without_dynamo(torch),
        kept_module_lists(),
    ):
        import transformers.generation.utils
        import transformers.modeling_utils
        import transformers.models.auto.modeling_auto
        import transformers.models.auto.tokenization_auto

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _return_large_blocks_at_once() -> None:
    """Make glibc take blocks of a MiB and more straight from the system and give them back when they are freed.

    Left to itself it raises that size as it goes, and large intermediate results leave holes in the heap between
    small ones that stay: tens of MiB that no plan can foresee.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    try:
        ctypes.CDLL(None).mallopt(mmap_threshold, MIB)
    except (OSError, AttributeError):
        pass  # not glibc


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """What is imported stays: looking through it for garbage takes a tenth of the time, and as long later on."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


def _unchanged(function: Any = None, *args: object, **kwargs: object) -> Any:
    """A decorator, with arguments or without, that changes nothing."""
    return function if callable(function) else lambda decorated: decorated


@contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Give the attribute `name` of `owner` another value for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def _without_meta_registrations() -> Iterator[None]:
    """Import torch without what its operators say in Python of the shapes of their results.

    That is for compiling and exporting; tensors without data, of which models are built, get along with what the
    operators know in C++. It is 15 modules, 17 MiB, and a fifth of the time that torch and transformers take to
    import. Who wants it later imports it then.
    """
    name = "torch._meta_registrations"
    if "torch" in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
    vars(sys.modules["torch"]).pop("_meta_registrations", None)
    _let_generators_be_made(sys.modules["torch"])


def _let_generators_be_made(torch: Any) -> None:
    """`torch.Generator` has a metaclass, which torch 2.13 sets in a module that only meta registrations import."""
    try:
        torch.Generator()
    except RuntimeError:
        from torch._opaque_base import OpaqueBaseMeta

        torch._C._set_generator_metaclass(OpaqueBaseMeta)


@contextmanager
def _without_dynamo(torch: Any) -> Iterator[None]:
    """Stand in for torch's compiler: its submodules can be imported one by one, its decorators do nothing."""
    spec = importlib.util.find_spec("torch._dynamo")
    if "torch._dynamo" in sys.modules or spec is None or spec.submodule_search_locations is None:
        yield
        return
    stand_in = ModuleType("torch._dynamo")
    stand_in.__path__ = list(spec.submodule_search_locations)

    def decorator(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unchanged

    stand_in.__getattr__ = decorator  # type: ignore[method-assign]
    sys.modules["torch._dynamo"] = stand_in
    torch._dynamo = stand_in
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"]]:
            del sys.modules[name]
        del torch._dynamo
