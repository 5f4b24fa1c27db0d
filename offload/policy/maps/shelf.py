"""What collections of learnt things have in common: they are bounded, kept in a file, and put together."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy import learnt_file as file

DISTANCE = 3
"""Layers that predictions look ahead, unless something else is asked for."""
OTHER_MODEL = "take what was learnt from this model, or clear it: finemoe maps clear"

Halves = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class StoreModel:
    """What a collection knows of its model.

    Attributes:
        layers / experts / hidden: Layers with routed experts, experts of one, width of the residual stream.
        name: Of its folder, to show; empty if not known.
        fingerprint: `offload.store.fingerprint`; empty if not known.
    """

    layers: int
    experts: int
    hidden: int
    name: str = ""
    fingerprint: str = ""

    def is_same(self, other: StoreModel) -> bool:
        """Whether what was learnt from one holds for the other; the name does not matter."""
        mine = (self.layers, self.experts, self.hidden, self.fingerprint)
        return mine == (other.layers, other.experts, other.hidden, other.fingerprint)


class Shelf(ABC):
    """A bounded collection of entries, two arrays of float16 each.

    Attributes:
        model: What they were learnt from.
        capacity: Entries at most.
        created: When it was begun, ISO 8601 in UTC.
        ids: [C] uint64, a digest of each entry.
    """

    def __init__(self, model: StoreModel, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.created = datetime.now(UTC).isoformat(timespec="seconds")
        self.ids: NDArray[np.uint64] = np.zeros(capacity, np.uint64)
        self._size = 0
        self._known: dict[int, int] = {}  # id -> its entry
        self._saved: set[int] = set()  # ids that are in the file, as far as known here

    def __len__(self) -> int:
        return self._size

    @classmethod
    @abstractmethod
    def load(cls, path: Path, *, fingerprint: str = "") -> Self:
        """The collection in a file."""

    def save(self, path: Path) -> None:
        """Write the collection to a file, whole or not at all, together with what others have added meanwhile.

        Under the file's lock: entries that another process put there since this one was loaded or last saved join
        it first.

        Raises:
            KnowledgeError: The file that is there cannot be read, is of a newer version or of another model.
            StorageError: It cannot be written. In both cases the file is as before.
        """
        with file.writing(path):
            if path.exists():
                there = type(self).load(path)
                self._check_same(there)
                self.created = min(self.created, there.created)
                # What was in the file before and is not here any more was replaced here.
                self._take(there, self._saved)
            self._write(path)
        self._saved = set(self._known)

    def export(self, path: Path) -> None:
        """Write the collection to a file as it is, in the place of any that is there.

        Raises:
            StorageError: It cannot be written.
        """
        self._write(path)

    def merge(self, other: Self) -> int:
        """Add the entries of `other`; returns how many were new.

        Raises:
            KnowledgeError: It was learnt from another model.
        """
        self._check_same(other)
        return self._take(other, set())

    @abstractmethod
    def _entry(self, number: int) -> tuple[Halves, Halves]:
        """An entry."""

    @abstractmethod
    def _put(self, first: Halves, second: Halves) -> bool:
        """Add an entry, in the place of another if need be; returns whether it was new."""

    @abstractmethod
    def _write(self, path: Path) -> None:
        """Write all to a file."""

    def _check_same(self, other: Self) -> None:
        """Raise `KnowledgeError` if the two cannot be put together."""
        if not self.model.is_same(other.model):
            raise KnowledgeError(f"it was learnt from another model ({other.model.name or 'unknown'})", OTHER_MODEL)

    def _take(self, other: Self, without: set[int]) -> int:
        ids = other.ids[: len(other)].tolist()
        return sum(number not in without and self._put(*other._entry(place)) for place, number in enumerate(ids))

    def _free_place(self) -> int | None:
        """A place for another entry, None where there is none."""
        if self._size == self.capacity:
            return None
        self._size += 1
        return self._size - 1

    def _book(self, place: int, number: int) -> None:
        """The entry at `place` has this id from now on, and whichever was there is gone."""
        if self._known.get(int(self.ids[place])) == place:
            del self._known[int(self.ids[place])]
        self.ids[place] = number
        self._known[number] = place

    def _facts(self) -> dict[str, Any]:
        return {"model": asdict(self.model), "capacity": self.capacity, "created": self.created}


def digest(*arrays: Halves) -> int:
    """What tells one entry from another: 64 bits of its arrays' bytes."""
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def facts_of(content: file.Content, path: Path) -> tuple[StoreModel, int, str]:
    """Model, capacity and beginning that a file says.

    Raises:
        KnowledgeError: One is missing or impossible.
    """
    try:
        model = StoreModel(**content.facts["model"])
        capacity, created = int(content.facts["capacity"]), str(content.facts["created"])
        if min(model.layers, model.experts, model.hidden, capacity) < 1:
            raise ValueError("a size")
    except (KeyError, TypeError, ValueError) as error:
        raise file.damaged(path, f"{error} is missing or wrong") from error
    return model, capacity, created


def arrays_of(content: file.Content, path: Path, first: str, second: str) -> tuple[Halves, Halves]:
    """Both arrays of all entries.

    Raises:
        KnowledgeError: One is missing or has impossible numbers.
    """
    for name in (first, second):
        array = content.arrays.get(name)
        if array is None or array.dtype != np.float16 or not np.isfinite(array).all():
            raise file.damaged(path, f"it has no usable {name}")
    return content.arrays[first], content.arrays[second]


def check_fingerprint(model: StoreModel, wanted: str, path: Path) -> None:
    """Raise `KnowledgeError` if a file is of another model than the `wanted` one; empty for any."""
    if wanted and wanted != model.fingerprint:
        raise KnowledgeError(f"{path} was learnt from another model ({model.name or 'unknown'})", OTHER_MODEL)
