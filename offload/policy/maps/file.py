"""Files of expert maps: what is in one, and that it can be used. ``docs/expert-maps.md`` has the format."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy import learnt_file

FILE_NAME = "maps.fmm"
OTHER_MODEL = "take what was learnt from this model; finemoe maps clear deletes what is kept of one"
_KIND = "maps"

Halves = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class StoreModel:
    """What a store knows of its model.

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


@dataclass(frozen=True, slots=True)
class StoreContent:
    """A store as it is in a file.

    Attributes:
        model: Whose maps these are.
        capacity: Entries at most.
        created: When the store was begun, ISO 8601 in UTC.
        embeddings / maps: [N, H] and [N, L, E].
    """

    model: StoreModel
    capacity: int
    created: str
    embeddings: Halves
    maps: Halves


def maps_file(folder: Path, fingerprint: str) -> Path:
    """Where in the folder of what was learnt the store of a model is."""
    return folder / fingerprint[:16] / FILE_NAME


def read_store(path: Path, *, fingerprint: str = "") -> StoreContent:
    """What is in the file at `path`.

    Args:
        fingerprint: The model that it has to be of; empty for any.

    Raises:
        KnowledgeError: There is none, or it cannot be used; the message says why.
    """
    content = learnt_file.read(path, _KIND)
    try:
        model = StoreModel(**content.facts["model"])
        capacity, created = int(content.facts["capacity"]), str(content.facts["created"])
        if min(model.layers, model.experts, model.hidden, capacity) < 1:
            raise ValueError("a size")
    except (KeyError, TypeError, ValueError) as error:
        raise learnt_file.damaged(path, f"{error} is missing or wrong") from error
    for name in ("embeddings", "maps"):
        array = content.arrays.get(name)
        if array is None or array.dtype != np.float16 or not np.isfinite(array).all():
            raise learnt_file.damaged(path, f"it has no usable {name}")
    embeddings, maps = content.arrays["embeddings"], content.arrays["maps"]
    if embeddings.shape[1:] != (model.hidden,) or maps.shape != (len(embeddings), model.layers, model.experts):
        raise learnt_file.damaged(path, f"maps {maps.shape} do not go with embeddings {embeddings.shape}")
    if fingerprint and fingerprint != model.fingerprint:
        raise KnowledgeError(f"{path} was learnt from another model ({model.name or 'unknown'})", OTHER_MODEL)
    return StoreContent(model, capacity, created, embeddings, maps)


def write_store(path: Path, content: StoreContent) -> None:
    """Put `content` at `path`, whole or not at all, in the place of what is there.

    Raises:
        StorageError: It cannot be written.
    """
    facts = {"model": asdict(content.model), "capacity": content.capacity, "created": content.created}
    learnt_file.write(path, _KIND, facts, {"embeddings": content.embeddings, "maps": content.maps})
