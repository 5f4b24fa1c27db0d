"""Watching an engine from another process: reading its board, a file that the engine's process keeps up to date.

Nothing that a reader does or leaves undone reaches the engine; it needs the right to read the file and no more.
The engine's process holds a lock on its board as long as it lives, however it ends, and that is how readers know.
What a killed process leaves behind is removed by whoever looks next.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from offload.errors import BoardError
from offload.service.board_files import board_files, is_abandoned, sweep_boards
from offload.service.board_format import (
    BEGUN,
    ENDED,
    HEAD_BYTES,
    SEQUENCE,
    WORD_BYTES,
    BoardLayout,
    Texts,
    to_frame,
    to_record,
)
from offload.telemetry.frame import Facts, Frame, TokenRecord

_TRIES = 50
_PAUSE_S = 0.0002


class BoardReader:
    """One engine's board, opened for reading. One thread at a time.

    Attributes:
        path: The file.
        facts: What does not change.

    Raises:
        BoardError: There is no board at `path`, it is damaged, or of another version.
    """

    facts: Facts

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BoardError(f"the board {path} cannot be read: {error.strerror}") from error
        try:
            size = os.fstat(self._file).st_size
            self._layout = BoardLayout.parse(os.pread(self._file, HEAD_BYTES, 0), size)
        except BoardError as error:
            os.close(self._file)
            raise BoardError(f"{path}: {error.message}", error.hint) from error
        except OSError as error:
            os.close(self._file)
            raise BoardError(f"the board {path} cannot be read: {error.strerror}") from error
        self.facts = self._layout.facts
        self._dead = False
        self._sequence = -1
        self._frame: Frame | None = None
        self._encoded: bytes | None = None
        self._texts: Texts

    def __enter__(self) -> BoardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def frame(self) -> Frame:
        """The engine as last published; the very same object as before if nothing has been since.

        Raises:
            BoardError: The engine's process ended while writing its first frame, or the file is damaged.
        """
        for _ in range(_TRIES):
            sequence = self._word(SEQUENCE)
            if sequence == self._sequence and self._frame is not None:
                return self._frame
            if sequence % 2 == 0:
                data = os.pread(self._file, self._layout.ring_at - self._layout.frame_at, self._layout.frame_at)
                if self._word(SEQUENCE) == sequence:
                    self._frame, self._sequence = self._decoded(data), sequence
                    return self._frame
            time.sleep(_PAUSE_S)
        if self._frame is None:
            raise BoardError(f"{self.path}: nothing whole can be read")
        return self._frame

    @property
    def next_record(self) -> int:
        """Number of the token record that will come next: how many there have been."""
        return self._word(ENDED)

    def records(self, first: int = 0) -> list[TokenRecord]:
        """The token records from number `first` on that are there, in order; older ones may be gone."""
        layout, end = self._layout, self._word(ENDED)
        first = max(first, end - layout.ring)
        if first >= end:
            return []
        rows = np.concatenate([self._rows(begin, stop) for begin, stop in _runs(first, end, layout.ring)])
        kept = max(first, self._word(BEGUN) - layout.ring)
        return [to_record(rows[n - first]) for n in range(kept, end) if rows[n - first]["number"] == n]

    def alive(self) -> bool:
        """Whether the engine's process still lives and has not closed its board."""
        if not self._dead and is_abandoned(self._file):
            self._dead = True
        return not self._dead

    def close(self) -> None:
        """Give the file back. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _word(self, word: int) -> int:
        data = os.pread(self._file, WORD_BYTES, self._layout.words_at + WORD_BYTES * word)
        if len(data) < WORD_BYTES:
            raise BoardError(f"{self.path}: the board is damaged")
        return int.from_bytes(data, "little")

    def _decoded(self, data: bytes) -> Frame:
        layout = self._layout
        try:
            numbers = np.frombuffer(data, layout.frame_dtype, 1)[0]
            begin = layout.text_at - layout.frame_at
            encoded = data[begin : begin + int(numbers["text_bytes"])]
            if encoded != self._encoded:  # Mostly only numbers have changed.
                self._texts, self._encoded = Texts.decode(encoded), encoded
        except (ValueError, TypeError, KeyError) as error:
            raise BoardError(f"{self.path}: the board is damaged") from error
        return to_frame(self.facts, numbers, self._texts)

    def _rows(self, begin: int, end: int) -> NDArray[np.void]:
        layout = self._layout
        size = layout.record_dtype.itemsize
        data = os.pread(self._file, (end - begin) * size, layout.ring_at + begin % layout.ring * size)
        if len(data) < (end - begin) * size:
            raise BoardError(f"{self.path}: the board is damaged")
        return np.frombuffer(data, layout.record_dtype)


def list_boards(folder: Path) -> list[BoardReader]:
    """The boards of the engines that run now, the latest opened first; the caller closes them.

    Those that cannot be read are left out. Boards of processes that are no more are removed.
    """
    sweep_boards(folder)
    readers = []
    for path in board_files(folder):
        try:
            reader = BoardReader(path)
        except BoardError:
            continue
        if reader.alive():
            readers.append(reader)
        else:
            reader.close()
    return sorted(readers, key=lambda reader: reader.facts.opened, reverse=True)


def _runs(first: int, end: int, ring: int) -> list[tuple[int, int]]:
    """The records `first`..`end` as pieces that lie side by side in a ring of `ring`, at most two."""
    middle = min(end, (first // ring + 1) * ring)
    return [(first, middle), (middle, end)] if middle < end else [(first, end)]
