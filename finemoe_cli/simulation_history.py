"""What policies learn from one part of a trace before the other is replayed, kept for the next time."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from finemoe_cli.simulation import shape_of
from offload.errors import FinemoeError, KnowledgeError, StorageError
from offload.policy import auto, knowledge, low_rank, past, probe_fitting, probes
from offload.policy.knowledge import PROBES_FILE, Knowledge, Shape, knowledge_folder, load_knowledge
from offload.policy.maps import MapStore, StoreModel, maps_file
from offload.policy.maps import iteration as map_iterations
from offload.policy.maps import store as map_store
from offload.policy.probe_fitting import TooLittle, fit_probes
from offload.policy.registry import make_policy
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.file import Trace
from offload.trace.records import TraceRequest
from offload.trace.simulator import Simulation, Timing
from profiles.paths import ensure_folder

Progress = Callable[[str, int, int], None]

KEPT = 8
"""Histories that stay in the cache folder; of more, those used longest ago go."""
_DONE = "history.json"
_SOURCES = (auto, knowledge, low_rank, map_iterations, map_store, past, probe_fitting, probes)
"""What is learnt depends on all of them."""


def learn(
    traces: Sequence[Trace], history: Sequence[tuple[int, int]], cache: Path, progress: Progress
) -> tuple[Knowledge, str]:
    """What all policies learn from the requests `history`: computed, or as it was kept in `cache`.

    Args:
        history: Which trace, and which request of it.
        progress: Told of the stages ``hash``, ``fit`` and ``learn``.

    Returns:
        What was learnt, and why not all of it could be, in one line; empty if it could.

    Raises:
        TraceError: A request is damaged.
        StorageError: `cache` cannot be written.
    """
    model = traces[0].model
    shape = shape_of(model)
    root = cache / _key(traces, history, progress)
    try:
        note = json.loads((root / _DONE).read_text(encoding="utf-8"))["note"]
        (root / _DONE).touch()
        return _load(root, shape), note
    except (OSError, ValueError, LookupError, KnowledgeError):
        pass
    ensure_folder(root)
    requests = [traces[trace][number] for trace, number in history]
    note = ""
    try:
        fitted = fit_probes(model, requests, progress)
        knowledge.save_probes(knowledge_folder(root, shape.fingerprint) / PROBES_FILE, shape, fitted)
    except TooLittle as error:
        note = f"no predictors were fitted: {error.message}"
    store = MapStore(StoreModel(model.layers, model.experts, model.hidden, model.name, model.fingerprint))
    policy = Simulation(model, 2 * model.top_k, Timing(), partial(make_policy, "auto")).policy
    for place, request in enumerate(requests):
        progress("learn", place, len(requests))
        for entry in map_iterations.iterations(request):
            store.add(*entry)
        for forward, routings in _passes(request):
            policy.begin_pass(forward)
            for routing in routings:
                policy.routed(routing)
            policy.end_pass()
    progress("learn", len(requests), len(requests))
    knowledge.save_learnt(root, shape, policy)
    store.save(maps_file(root, shape.fingerprint))
    try:
        (root / _DONE).write_text(json.dumps({"note": note}) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{root / _DONE} cannot be written: {error.strerror or error}") from error
    _clear(cache)
    return _load(root, shape), note


def _load(root: Path, shape: Shape) -> Knowledge:
    """Everything that was kept, for whichever policy.

    Raises:
        KnowledgeError: Something of it cannot be used.
    """
    of_auto, of_maps = (load_knowledge(root, shape, policy) for policy in ("auto", "finemoe"))
    if of_auto.note or of_maps.note:
        raise KnowledgeError(of_auto.note or of_maps.note)
    return Knowledge(of_auto.probes, of_maps.maps, of_auto.past)


def _passes(request: TraceRequest) -> Sequence[tuple[ForwardPass, list[Routing]]]:
    """The request as a policy saw it, without residuals: nothing is to be predicted."""
    found = []
    for one in request.passes:
        embedding = one.embedding.astype(np.float32)
        forward = ForwardPass(one.phase, 1, one.token_ids.tolist(), one.position, embedding)
        probabilities, chosen = one.probabilities.astype(np.float32), one.chosen.astype(np.int32)
        layers = range(len(chosen))
        found.append((forward, [Routing(i, probabilities[i], chosen[i], None, None) for i in layers]))
    return found


def _key(traces: Sequence[Trace], history: Sequence[tuple[int, int]], progress: Progress) -> str:
    """A name for all that the result depends on."""
    digest = hashlib.sha256(version("finemoe").encode())
    for module in _SOURCES:
        digest.update(inspect.getsource(module).encode())
    for number, trace in enumerate(traces):
        progress("hash", number, len(traces))
        try:
            with trace.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise FinemoeError(f"the trace {trace.path} cannot be read: {error.strerror or error}") from error
    digest.update(json.dumps(history).encode())
    return digest.hexdigest()[:16]


def _clear(cache: Path) -> None:
    kept = sorted(cache.glob(f"*/{_DONE}"), key=lambda path: -path.stat().st_mtime)
    for path in kept[KEPT:]:
        shutil.rmtree(path.parent, ignore_errors=True)


def describe(known: Knowledge) -> dict[str, object]:
    """What was learnt, in numbers, for ``--json``."""
    return {
        "probes": known.probes is not None,
        "probe_bytes": 0 if known.probes is None else known.probes.memory_bytes,
        "maps": 0 if known.maps is None else len(known.maps),
        "past": known.past is not None,
    }
