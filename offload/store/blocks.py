"""Reading byte ranges of files: whole blocks past the page cache, or exact ranges that stay out of it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from offload.store.base import BLOCK

_FOLIO = 64 << 10  # bytes; larger than the folios that reads without read-ahead make


def align_down(offset: int) -> int:
    """The last block boundary at or before byte ``offset``."""
    return offset & -BLOCK


def align_up(offset: int) -> int:
    """The first block boundary at or after byte ``offset``."""
    return -(-offset // BLOCK) * BLOCK


def aligned_buffer(nbytes: int) -> mmap.mmap:
    """Zeroed private memory of at least ``nbytes`` bytes that begins at a page, as direct I/O needs."""
    return mmap.mmap(-1, max(align_up(nbytes), BLOCK), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def open_buffered(path: Path) -> int:
    """A descriptor for exact reads through the page cache, without the kernel's own read-ahead."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # Read-ahead would bring pages that nobody asked for and that no drop_cached() would name.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    return fd


def open_direct(path: Path) -> int:
    """A descriptor for block reads past the page cache.

    Raises:
        OSError: The filesystem refuses direct I/O. Some say so only at the first read, so one is made.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    try:
        with aligned_buffer(BLOCK) as block:
            os.preadv(fd, [block], 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_exact(fd: int, offset: int, into: memoryview) -> int:
    """Fills ``into`` with the bytes at ``offset``, leaving them in the page cache; returns their count.

    Raises:
        EOFError: The file ends before.
        OSError: The system's own failure.
    """
    wanted = len(into)
    done = 0
    while done < wanted:
        count = os.preadv(fd, [into[done:]], offset + done)
        if count == 0:
            raise EOFError(f"it ends {wanted - done} bytes too early")
        done += count
    return done


def read_blocks(fd: int, offset: int, wanted: int, into: memoryview) -> int:
    """Reads whole blocks from the aligned ``offset`` until the first ``wanted`` bytes are there.

    Args:
        fd: From :func:`open_direct`.
        offset: A multiple of :data:`BLOCK`.
        wanted: Bytes that must arrive; the last block may go on behind them, or the file end after them.
        into: Block-aligned memory, whole blocks, at least ``wanted`` bytes.

    Returns:
        Bytes read, ``wanted`` or a little more.

    Raises:
        EOFError: The file ends before ``wanted`` bytes.
        OSError: The system's own failure.
    """
    done = os.preadv(fd, [into], offset)
    while done < wanted:
        start = align_down(done)
        count = os.preadv(fd, [into[start:]], offset + start)
        if start + count <= done:
            raise EOFError(f"it ends {wanted - done} bytes too early")
        done = start + count
    return done


def drop_cached(fd: int, offset: int, nbytes: int) -> None:
    """Takes a range that was just read out of the page cache again, with what lies close around it.

    The cache keeps several pages together in one folio, and a folio stays if only a part of it is named.
    """
    start = offset // _FOLIO * _FOLIO
    end = -(-(offset + nbytes) // _FOLIO) * _FOLIO
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
