"""Which experts a topic needs: for the first token of a new one, when nothing of its routing has been seen yet.

An entry is the embedding of a prompt's text, by whichever sentence embedder there is, and how often the request
used each expert. A new prompt is expected to be answered as its nearest neighbours were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy import learnt_file as file
from offload.policy.maps.shelf import (
    Halves,
    Shelf,
    StoreModel,
    arrays_of,
    check_fingerprint,
    digest,
    facts_of,
)
from offload.policy.maps.store import Floats, inverse

CAPACITY = 256
KIND = "topics"
FILE_NAME = "topics.fmm"
NEIGHBOURS = 8
SHARPNESS = 10.0
"""How much more a nearer topic counts: weights are softmax(SHARPNESS * cosine)."""


class TopicStore(Shelf):
    """A bounded collection of topics. In a full one, a new topic takes the place of the most similar.

    Args:
        model: Whose experts these are.
        width: Numbers of an embedding; 384 for all-MiniLM-L6-v2.
        capacity: Topics at most.

    Attributes:
        embeddings: [C, W] float32, of length 1.
        uses: [C, L*E] float16, share of the request's passes that used each expert.
    """

    def __init__(self, model: StoreModel, width: int, capacity: int = CAPACITY) -> None:
        super().__init__(model, capacity)
        self.width = width
        self.embeddings: Floats = np.zeros((capacity, width), np.float32)
        self.uses: Halves = np.zeros((capacity, model.layers * model.experts), np.float16)

    @property
    def memory_bytes(self) -> int:
        """What the collection takes when it is full."""
        return self.embeddings.nbytes + self.uses.nbytes + self.ids.nbytes

    def add(self, embedding: NDArray[Any], uses: NDArray[Any], passes: int) -> bool:
        """Keep a topic.

        Args:
            embedding: [W], of the prompt's text.
            uses: [L*E], in how many forward passes of the request each expert was used.
            passes: Forward passes of the request.

        Returns:
            Whether it was new.
        """
        vector = np.asarray(embedding, np.float32)
        vector = vector * inverse(np.sqrt(vector @ vector))
        share = np.asarray(uses, np.float32).ravel() / np.float32(max(1, passes))
        return self._put(vector.astype(np.float16), share.astype(np.float16))

    def warm_set(self, embedding: NDArray[Any], slots: int) -> NDArray[np.int64]:
        """The experts that a request on this topic will likely use, most likely first.

        Args:
            embedding: [W], of the new prompt's text.
            slots: Experts at most.

        Returns:
            Expert ids, `layer * experts + expert`; none from an empty collection.
        """
        if not self._size:
            return np.zeros(0, np.int64)
        vector = np.asarray(embedding, np.float32)
        cosines = self.embeddings[: self._size] @ vector * inverse(np.sqrt(vector @ vector))
        near = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
        weights = np.exp(SHARPNESS * (cosines[near] - cosines[near[0]]))
        expected = (weights / weights.sum()) @ self.uses[near].astype(np.float32)
        order = np.argsort(-expected, kind="stable")[:slots]
        warm: NDArray[np.int64] = order[expected[order] > 0]
        return warm

    @classmethod
    def load(cls, path: Path, *, fingerprint: str = "") -> Self:
        """The collection in a file.

        Args:
            fingerprint: The model that it has to be of; empty for any.

        Raises:
            KnowledgeError: There is none, or it cannot be used; the message says why.
        """
        content = file.read(path, KIND)
        model, capacity, created = facts_of(content, path)
        embeddings, uses = arrays_of(content, path, "embeddings", "uses")
        if embeddings.ndim != 2 or uses.shape != (len(embeddings), model.layers * model.experts):
            raise file.damaged(path, f"uses {uses.shape} do not go with embeddings {embeddings.shape}")
        check_fingerprint(model, fingerprint, path)
        store = cls(model, embeddings.shape[1], capacity)
        store.created = created
        for entry in zip(embeddings, uses, strict=True):
            store._put(*entry)
        store._saved = set(store._known)
        return store

    def _check_same(self, other: Self) -> None:
        super()._check_same(other)
        if self.width != other.width:
            raise KnowledgeError(
                f"the topics were embedded with {other.width} numbers, and here they have {self.width}",
                "clear them: finemoe maps clear",
            )

    def _entry(self, number: int) -> tuple[Halves, Halves]:
        return self.embeddings[number].astype(np.float16), self.uses[number].copy()

    def _put(self, first: Halves, second: Halves) -> bool:
        number = digest(first, second)
        if number in self._known:
            return False
        place = self._free_place()
        if place is None:
            place = int((self.embeddings @ first.astype(np.float32)).argmax())
        self._book(place, number)
        self.embeddings[place] = first
        self.uses[place] = second
        return True

    def _write(self, path: Path) -> None:
        embeddings = self.embeddings[: self._size].astype(np.float16)
        file.write(path, KIND, self._facts(), {"embeddings": embeddings, "uses": self.uses[: self._size]})


def topics_file(folder: Path, fingerprint: str) -> Path:
    """Where in the folder of what was learnt the topics of a model are."""
    return folder / fingerprint[:16] / FILE_NAME
