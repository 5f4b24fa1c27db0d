"""The expert map store: what past iterations looked like, so that a new one can be recognised.

An iteration is one decoded token, or one prompt as a whole. An entry is its semantic embedding and its expert map,
every router's softmax. The store holds a fixed number of them; once it is full, a new entry takes the place of the
one that it resembles most (FineMoE, EuroSys '26).
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy import learnt_file
from offload.policy.maps.file import (
    OTHER_MODEL,
    Halves,
    StoreContent,
    StoreModel,
    maps_file,
    read_store,
    write_store,
)

CAPACITY = 1000
"""Entries, unless something else is asked for; in the paper more gained little."""
DISTANCE = 3
"""Layers that predictions look ahead, unless something else is asked for."""

_PIECE = 32_768
"""Numbers of a matrix that one product goes over: with more, OpenBLAS calls in threads, which spin while they wait
and take the cores from the lanes."""

Floats = NDArray[np.float32]


class MapStore:
    """A bounded collection of expert maps with their embeddings.

    Numbers have the precision of float16, in which they are saved. In memory they are float32, as widening them
    for each search would take twenty times as long as the search.

    Args:
        model: Whose maps these are.
        capacity: Entries at most.

    Attributes:
        created: When it was begun, ISO 8601 in UTC.
        distance: d of the redundancy; whoever predicts sets it.
        ids: [C] uint64, a digest of each entry.
        embeddings: [C, H] float32, of length 1.
        maps: [L, C, E] float32, so that what one layer's search reads is in one piece.
        scales: [L, C] float32, 1 / length of each map's rows 0..l taken as one vector.
    """

    def __init__(self, model: StoreModel, capacity: int = CAPACITY) -> None:
        layers, experts = model.layers, model.experts
        self.model = model
        self.capacity = capacity
        self.created = datetime.now(UTC).isoformat(timespec="seconds")
        self.distance = DISTANCE
        self.ids: NDArray[np.uint64] = np.zeros(capacity, np.uint64)
        self.embeddings: Floats = np.zeros((capacity, model.hidden), np.float32)
        self.maps: Floats = np.zeros((layers, capacity, experts), np.float32)
        self.scales: Floats = np.zeros((layers, capacity), np.float32)
        self._size = 0
        self._known: dict[int, int] = {}  # id -> its entry
        self._saved: set[int] = set()  # ids that are in the file, as far as known here

    def __len__(self) -> int:
        return self._size

    @property
    def memory_bytes(self) -> int:
        """What the store takes when it is full."""
        model = self.model
        return memory_bytes(model.layers, model.experts, model.hidden, self.capacity)

    def semantic_cosines(self, embedding: Floats) -> Floats:
        """Cosine of `embedding` [H] with each entry's: [N]."""
        length = float(np.sqrt(embedding @ embedding))
        out = np.empty(self._size, np.float32)
        multiply(self.embeddings[: self._size], embedding, out)
        if length:
            out /= length
        return out

    def map_cosines(self, expert_map: Floats) -> Floats:
        """Cosine of `expert_map` [L, E] with each entry's, taken as one vector: [N]."""
        out, dots = np.empty(self._size, np.float32), np.zeros(self._size, np.float32)
        for layer in range(self.model.layers):
            multiply(self.maps[layer, : self._size], expert_map[layer], out)
            dots += out
        dots *= self.scales[-1, : self._size] * inverse(np.sqrt(np.square(expert_map).sum()))
        return dots

    def add(
        self,
        embedding: NDArray[Any],
        expert_map: NDArray[Any],
        cosines: tuple[Floats, Floats] | None = None,
    ) -> bool:
        """Keep an iteration; in a full store it takes the place of the most redundant entry.

        Redundancy is (d/L) * cosine of the embeddings + ((L-d)/L) * cosine of the maps, as the first d layers are
        predicted by the one and the others by the other.

        Args:
            embedding: [H].
            expert_map: [L, E] probabilities.
            cosines: `semantic_cosines` and `map_cosines` of it, where they are known already.

        Returns:
            Whether it was new.
        """
        vector = np.asarray(embedding, np.float32)
        vector = vector * inverse(np.sqrt(vector @ vector))
        return self._put(vector.astype(np.float16), np.asarray(expert_map, np.float16), cosines)

    def resize(self, capacity: int) -> None:
        """Have room for another number of entries; the most redundant ones go where there are too many."""
        if capacity == self.capacity:
            return
        other = type(self)(self.model, capacity)
        other._extend(self.embeddings[: self._size].astype(np.float16), self._maps_by_entry())
        other.distance = self.distance
        self.capacity, self._size, self._known = capacity, other._size, other._known
        self.ids, self.embeddings, self.maps, self.scales = other.ids, other.embeddings, other.maps, other.scales

    # Files

    @classmethod
    def load(cls, path: Path, *, fingerprint: str = "", capacity: int | None = None) -> Self:
        """The store in a file.

        Args:
            fingerprint: The model that it has to be of; empty for any.
            capacity: Another than the file's; of too many entries the most redundant ones go.

        Raises:
            KnowledgeError: There is none, or it cannot be used; the message says why.
        """
        kept = read_store(path, fingerprint=fingerprint)
        store = cls(kept.model, max(1, kept.capacity if capacity is None else capacity))
        store.created = kept.created
        store._extend(kept.embeddings, kept.maps)
        store._saved = set(store._known)
        return store

    def save(self, path: Path) -> None:
        """Write the store to a file, whole or not at all, together with what others have added meanwhile.

        Under the file's lock: entries that another process put there since this one was loaded or last saved join
        it first.

        Raises:
            KnowledgeError: The file that is there cannot be read, is of a newer version or of another model.
            StorageError: It cannot be written. In both cases the file is as before.
        """
        with learnt_file.writing(path):
            if path.exists():
                there = type(self).load(path)
                self._check_same(there)
                self.created = min(self.created, there.created)
                # What was in the file before and is not here any more was replaced here.
                self._take(there, self._saved)
            self.export(path)
        self._saved = set(self._known)

    def export(self, path: Path) -> None:
        """Write the store to a file as it is, in the place of any that is there.

        Raises:
            StorageError: It cannot be written.
        """
        embeddings = self.embeddings[: self._size].astype(np.float16)
        write_store(path, StoreContent(self.model, self.capacity, self.created, embeddings, self._maps_by_entry()))

    def merge(self, other: MapStore) -> int:
        """Add the entries of `other`; returns how many were new.

        Raises:
            KnowledgeError: It was learnt from another model.
        """
        self._check_same(other)
        return self._take(other, set())

    def _check_same(self, other: MapStore) -> None:
        """Raise `KnowledgeError` if the two cannot be put together."""
        if not self.model.is_same(other.model):
            raise KnowledgeError(f"it was learnt from another model ({other.model.name or 'unknown'})", OTHER_MODEL)

    def _take(self, other: MapStore, without: set[int]) -> int:
        ids = other.ids[: len(other)].tolist()
        return sum(number not in without and self._put(*other._entry(place)) for place, number in enumerate(ids))

    # Entries

    def _maps_by_entry(self) -> NDArray[np.float16]:
        """[N, L, E]."""
        return np.ascontiguousarray(self.maps[:, : self._size].transpose(1, 0, 2), np.float16)

    def _entry(self, number: int) -> tuple[Halves, Halves]:
        """Embedding [H] and map [L, E] of an entry."""
        return self.embeddings[number].astype(np.float16), self.maps[:, number].astype(np.float16)

    def _extend(self, embeddings: Halves, maps: Halves) -> None:
        """Add entries to an empty store: as many as there is room for at once, then one by one."""
        ids = np.array([_digest(*pair) for pair in zip(embeddings, maps, strict=True)], np.uint64)
        first = np.sort(np.unique(ids, return_index=True)[1])  # an entry that is there twice counts once
        now, later = first[: self.capacity], first[self.capacity :]
        count = self._size = len(now)
        self.ids[:count] = ids[now]
        self._known = {number: place for place, number in enumerate(ids[now].tolist())}
        self.embeddings[:count] = embeddings[now]
        self.maps[:, :count] = maps[now].transpose(1, 0, 2)
        squares = np.square(self.maps[:, :count]).sum(axis=2)
        self.scales[:, :count] = inverse(np.sqrt(np.cumsum(squares, axis=0)))
        for number in later.tolist():
            self._put(embeddings[number], maps[number])

    def _put(self, first: Halves, second: Halves, cosines: tuple[Floats, Floats] | None = None) -> bool:
        """As `add`, with the embedding [H] and the map [L, E] as they are kept."""
        number = _digest(first, second)
        if number in self._known:
            return False
        wide = second.astype(np.float32)
        if self._size < self.capacity:
            place = self._size
            self._size += 1
        else:
            place = self._most_redundant(
                *(cosines or (self.semantic_cosines(first.astype(np.float32)), self.map_cosines(wide)))
            )
            self._known.pop(int(self.ids[place]), None)
        self.ids[place] = number
        self._known[number] = place
        self.embeddings[place] = first
        self.maps[:, place] = wide
        self.scales[:, place] = inverse(np.sqrt(np.cumsum(np.square(wide).sum(axis=1))))
        return True

    def _most_redundant(self, of_embeddings: Floats, of_maps: Floats) -> int:
        share = min(self.distance, self.model.layers) / self.model.layers
        return int((share * of_embeddings + (1 - share) * of_maps).argmax())


def memory_bytes(layers: int, experts: int, hidden: int, capacity: int = CAPACITY) -> int:
    """What a full store takes in memory."""
    return capacity * (4 * (layers * experts + hidden + layers) + 8)


def open_maps(folder: Path, model: StoreModel) -> tuple[MapStore, str]:
    """The store of a model, for an engine, which goes on whatever is wrong with it.

    Args:
        folder: Of what was learnt.
        model: Whose, with its fingerprint.

    Returns:
        The store as it is kept, or an empty one; and why a file that is there is not used, in one line.
    """
    path = maps_file(folder, model.fingerprint)
    try:
        if path.exists():
            return MapStore.load(path, fingerprint=model.fingerprint), ""
    except KnowledgeError as error:
        return MapStore(model), f"begun without the expert maps: {error.message}"
    except OSError as error:
        return MapStore(model), f"begun without the expert maps: {path}: {error.strerror or error}"
    return MapStore(model), ""


def _digest(embedding: Halves, expert_map: Halves) -> int:
    """What tells one entry from another: 64 bits of its bytes."""
    data = np.ascontiguousarray(embedding).tobytes() + np.ascontiguousarray(expert_map).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def multiply(matrix: Floats, vector: Floats, out: Floats) -> None:
    """out = matrix @ vector, on this thread alone. matrix: [N, M], vector: [M], out: [N]."""
    rows = max(1, _PIECE // matrix.shape[1])
    for first in range(0, len(matrix), rows):
        np.dot(matrix[first : first + rows], vector, out=out[first : first + rows])


def inverse(values: Any) -> Any:
    """1 / values, and 0 where they are 0."""
    values = np.asarray(values, np.float32)
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)
