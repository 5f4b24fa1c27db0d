"""Giving back the pages of libraries that only starting needed.

Importing torch and LLVM's loading of compiled kernels run through well over a hundred MiB of code that answering
never comes back to. These pages are resident, and count for a budget, though nothing has written them and the file
has them as well. A page that is wanted again is mapped again, mostly without a read, as the page cache has it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from offload.processor import compiles_products
from offload.units import MIB

RETURNING_BYTES = (48 if compiles_products() else 24) * MIB
"""What comes back of them while answering: 43 MiB after long and short prompts with the demo model and `auto`; 10
where torch compiles no products, as nothing goes through the compiler then."""

_LOADED, _WRITABLE = 1, 2  # PT_LOAD, PF_W
_SMAPS = Path("/proc/self/smaps")


class _Segment(ctypes.Structure):
    """Elf64_Phdr."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("file_size", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    )


class _Library(ctypes.Structure):
    """The beginning of struct dl_phdr_info."""

    _fields_ = (
        ("address", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_Segment)),
        ("count", ctypes.c_uint16),
    )


_Visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)


def give_back_libraries() -> bool:
    """Let go of the resident pages of all libraries' read-only segments; whether the system can do that.

    Threads that run in them meanwhile go on: what they need comes back at once. The loader is asked for the
    segments, rather than the kernel for mappings, since a library that is just being loaded has writable memory
    where its first mapping was.
    """
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    try:
        written = _written_pages()
        libc = ctypes.CDLL(None)
        visit_all, madvise = libc.dl_iterate_phdr, libc.madvise
    except (OSError, AttributeError):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def visit(library: ctypes._Pointer[_Library], size: int, data: int) -> int:
        for begin, end in _read_only(library.contents):
            if not any(begin < other_end and other_begin < end for other_begin, other_end in written):
                madvise(begin, end - begin, mmap.MADV_DONTNEED)  # refused, it stays as it is
        return 0

    visit_all(_Visit(visit), None)
    return True


def _read_only(library: _Library) -> list[tuple[int, int]]:
    """The whole pages of the segments that nobody may write."""
    if (library.name or b"").startswith(b"linux-"):
        return []  # The kernel's own, which is in no file.
    page = mmap.PAGESIZE
    found = []
    for segment in library.segments[: library.count]:
        if segment.type == _LOADED and not segment.flags & _WRITABLE:
            begin = library.address + segment.address
            first, last = -(-begin // page) * page, (begin + segment.size) // page * page
            if first < last:
                found.append((first, last))
    return found


def _written_pages() -> list[tuple[int, int]]:
    """Mappings that have pages of their own, and no longer those of a file; such pages would be lost.

    A debugger's breakpoints make them of code, and relocations of code in libraries that are built so.
    """
    found = []
    place = (0, 0)
    for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            begin, _, end = first.partition("-")
            place = int(begin, 16), int(end, 16)
        elif first == "Anonymous:" and rest.split()[0] != "0":
            found.append(place)
    return found
