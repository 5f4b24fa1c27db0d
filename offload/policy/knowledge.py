"""What was learnt about a model before: kept in a folder of its own, found by the model's fingerprint.

::

    <knowledge>/<first 16 digits of the fingerprint>/probes.safetensors    fitted predictors
                                                     past.safetensors      how often experts were used
                                                     maps.fmm              the expert-map store
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.errors import FinemoeError, KnowledgeError
from offload.policy import learnt_file
from offload.policy.base import Policy
from offload.policy.past import DECAYS, RECENCIES
from offload.policy.probes import GROUPS, TERMS, Probes

PROBES_FILE = "probes.safetensors"
PAST_FILE = "past.safetensors"
AUTO_TABLES = 25
"""Numbers of four bytes that `auto` keeps for each expert."""
PAST_ROWS = len(DECAYS) + len(RECENCIES)
_HINT = "learn it again: finemoe maps build"
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What policies may build on. Each part may be missing.

    Attributes:
        probes: Fitted predictors.
        maps: The expert-map store: `offload.policy.maps`.
        past: [10, L*E] float32, frequencies and recencies (`offload.policy.past`) where the last process ended.
        note: Why something that is there is not used, in one line.
    """

    probes: Probes | None = None
    maps: Any = None
    past: NDArray[np.float32] | None = None
    note: str = ""


def knowledge_folder(root: Path, fingerprint: str) -> Path:
    """Where everything about one model is kept."""
    return root / fingerprint[:_DIGITS]


@dataclass(frozen=True, slots=True)
class Shape:
    """The model that knowledge is about.

    Attributes:
        fingerprint: Of its weights; see `offload.store.fingerprint`.
    """

    fingerprint: str
    name: str
    layers: int
    experts: int
    hidden: int


def load_knowledge(root: Path | None, shape: Shape, policy: str) -> Knowledge:
    """What there is for `policy`. What cannot be used is left out; `note` says why, as it is not worth an error."""
    if root is None:
        return Knowledge()
    folder = knowledge_folder(root, shape.fingerprint)
    notes: list[str] = []

    def attempt(load: Callable[[], Any]) -> Any:
        try:
            return load()
        except FinemoeError as error:
            notes.append(str(error))
            return None

    probes = maps = past = None
    if policy in ("auto", "promoe"):
        probes = attempt(lambda: load_probes(folder / PROBES_FILE, shape))
    if policy == "auto":
        past = attempt(lambda: load_past(folder / PAST_FILE, shape))
    if policy == "finemoe":
        from offload.policy.maps import StoreModel
        from offload.policy.maps.store import open_maps

        model = StoreModel(shape.layers, shape.experts, shape.hidden, shape.name, shape.fingerprint)
        maps, said = open_maps(root, model)
        notes += [said] if said else []
    return Knowledge(probes, maps, past, "; ".join(notes))


def policy_bytes_of(shape: Shape, policy: str, knowledge: Knowledge, options: Mapping[str, float]) -> int:
    """What a policy takes in memory beside the slots, what it has learnt and its tables; charged to the budget."""
    total = shape.layers * shape.experts
    probes = 0 if knowledge.probes is None else knowledge.probes.memory_bytes
    if policy == "auto":
        return AUTO_TABLES * 4 * total + probes
    if policy == "promoe":
        return probes
    if policy == "moe-infinity":
        from offload.policy import moe_infinity

        return 4 * total * int(options.get("capacity", moe_infinity.CAPACITY))
    if policy == "finemoe":
        from offload.policy import maps

        capacity = int(
            options.get("capacity", maps.CAPACITY if knowledge.maps is None else knowledge.maps.capacity)
        )
        return maps.memory_bytes(shape.layers, shape.experts, shape.hidden, capacity)
    return 0


def likeliest_experts(policy: Policy) -> list[int]:
    """Experts that what was learnt before expects first, to begin with; none where nothing was."""
    expected = getattr(policy, "likeliest", None)
    return [] if expected is None else list(expected())


def save_learnt(root: Path, shape: Shape, policy: Policy) -> None:
    """Keep what `policy` has learnt in this process, for the next one.

    Raises:
        StorageError: It cannot be written.
        KnowledgeError: What is there is of a newer version, or cannot be put together with it.
    """
    past = getattr(policy, "past", None)
    if past is not None:
        _save(knowledge_folder(root, shape.fingerprint) / PAST_FILE, "past", shape, {"past": past})
    store = getattr(policy, "maps", None)
    if store is not None:
        from offload.policy.maps import maps_file

        store.save(maps_file(root, shape.fingerprint))


def save_probes(path: Path, shape: Shape, probes: Probes) -> None:
    """Write `probes`; who reads at the same time gets the old file or the new one.

    Raises:
        StorageError: The file cannot be written.
        KnowledgeError: The one that is there is of a newer version.
    """
    _save(path, "probes", shape, probes.arrays())


def load_probes(path: Path, shape: Shape) -> Probes | None:
    """The probes kept at `path`; None if there are none.

    Raises:
        KnowledgeError: They are another model's, of another version, or damaged.
    """
    arrays = _load(path, "probes", shape)
    if arrays is None:
        return None
    names = {field.name for field in fields(Probes)}
    if arrays.keys() != names or arrays["weights"].shape != (GROUPS, TERMS):
        raise KnowledgeError(f"{path} was learnt by another version of finemoe", _HINT)
    probes = Probes(**arrays)
    if probes.shape != (shape.layers, shape.experts, shape.hidden):
        raise KnowledgeError(f"{path} was learnt from another model", _HINT)
    return probes


def load_past(path: Path, shape: Shape) -> NDArray[np.float32] | None:
    """The past kept at `path`; None if there is none. Raises as `load_probes`."""
    arrays = _load(path, "past", shape)
    past = None if arrays is None else arrays.get("past")
    if arrays is not None and (past is None or past.shape != (PAST_ROWS, shape.layers * shape.experts)):
        raise KnowledgeError(f"{path} is damaged", _HINT)
    return past


def _save(path: Path, kind: str, shape: Shape, arrays: Mapping[str, NDArray[Any]]) -> None:
    with learnt_file.writing(path):
        learnt_file.check_not_newer(path)
        learnt_file.write(path, kind, {"fingerprint": shape.fingerprint, "model": shape.name}, arrays)


def _load(path: Path, kind: str, shape: Shape) -> Mapping[str, NDArray[Any]] | None:
    try:
        if not path.is_file():
            return None
    except OSError as error:
        raise KnowledgeError(f"{path} cannot be read: {error.strerror}") from error
    content = learnt_file.read(path, kind)
    if content.facts.get("fingerprint") != shape.fingerprint:
        raise KnowledgeError(f"{path} was learnt from another model", _HINT)
    return content.arrays
