"""Open files that experts are read from, past the page cache where the filesystem allows it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from offload.errors import CorruptCheckpoint, ExpertReadError, StorageError
from offload.models.spec import ModelSpec
from offload.store.blocks import align_up, drop_cached, open_buffered, open_direct, read_blocks, read_exact


class DataFiles:
    """Some files, open for reads of whole ranges from any thread.

    Attributes:
        paths: The files; reads name them by their place in it.
        direct: Whether reads go past the page cache.
        direct_refused: Why they do not, in one line; empty if they do.
    """

    def __init__(self, paths: Sequence[Path], direct: bool | None) -> None:
        """Opens ``paths``; ``direct`` None reads past the page cache where the filesystem allows it.

        Raises:
            CorruptCheckpoint: A file cannot be opened.
            StorageError: ``direct`` is asked for and the filesystem refuses it.
        """
        self.paths = tuple(paths)
        self._fds, self.direct_refused = _open_files(self.paths, direct)
        self.direct = not self.direct_refused

    def read(self, file: int, start: int, skip: int, wanted: int, into: memoryview) -> int:
        """Reads the range that begins ``skip`` bytes behind the block at ``start``, ``wanted`` bytes long.

        Args:
            file: Number of the file.
            start: A multiple of the block size.
            skip: Bytes of the first blocks that nobody asked for.
            wanted: Bytes of the range.
            into: Block-aligned memory, whole blocks; the range arrives at its byte ``skip``.

        Returns:
            Bytes taken from the disk.

        Raises:
            EOFError: The file ends before the range does.
            OSError: The system's own failure, or the files are closed.
        """
        if not self._fds:
            raise OSError("the store is closed")
        fd = self._fds[file]
        if self.direct:
            return read_blocks(fd, start, skip + wanted, into)
        done = read_exact(fd, start + skip, into[skip : skip + wanted])
        drop_cached(fd, start + skip, wanted)
        return done

    def read_parts(
        self, file: int, start: int, skip: int, wanted: int, into: memoryview, part_bytes: int
    ) -> Iterator[int]:
        """As :meth:`read`, in parts of about ``part_bytes`` bytes, whole blocks; yields the bytes of each."""
        begin, end = 0, skip + wanted
        while begin < end:
            left = end - begin
            stop = end if left < part_bytes + part_bytes // 4 else begin + part_bytes  # no tiny last one
            first = skip if begin == 0 else 0
            yield self.read(file, start + begin, first, stop - begin - first, into[begin : align_up(stop)])
            begin = stop

    def close(self) -> None:
        """Closes the files. No read may be under way; may be called twice."""
        fds, self._fds = self._fds, []
        for fd in fds:
            os.close(fd)


def read_failure(spec: ModelSpec, expert_id: int, path: Path, error: Exception) -> ExpertReadError:
    """The error for a failed read of expert ``expert_id``, which names it as users count."""
    layer, expert = divmod(expert_id, spec.num_experts)
    return ExpertReadError(
        f"expert {expert} of layer {spec.moe_layers[layer]} cannot be read from {path}: {error}",
        "check the disk, or fetch the model again",
    )


def _open_files(paths: Sequence[Path], direct: bool | None) -> tuple[list[int], str]:
    """Descriptors of all files, and why they are not for direct I/O (empty if they are)."""
    refused = "switched off"
    if direct is not False:
        try:
            return _open_all(paths, direct=True), ""
        except OSError as error:
            refused = f"the filesystem refuses it ({error.strerror})"
        if direct:
            raise StorageError(f"direct I/O on {paths[0].parent}: {refused}", "leave direct I/O to finemoe")
    try:
        return _open_all(paths, direct=False), refused
    except OSError as error:
        raise CorruptCheckpoint(f"{error.filename} cannot be opened: {error.strerror}") from error


def _open_all(paths: Sequence[Path], *, direct: bool) -> list[int]:
    fds: list[int] = []
    try:
        for path in paths:
            fds.append(open_direct(path) if direct else open_buffered(path))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds
