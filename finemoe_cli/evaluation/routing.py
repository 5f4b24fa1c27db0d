"""What a run keeps of its model's routing, in ``routing.npz``: counts, some iterations as they were, entropies.

Fine is one iteration: a decoded token's router probabilities, layers x experts, the FineMoE paper's expert map.
Coarse is what a whole request comes to: its iterations added up, as probabilities or as counts of the experts that
were chosen. The paper's Figure 3 compares their entropies.
"""

from __future__ import annotations

import io
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finemoe_cli.evaluation.folder import ROUTING, ROUTING_PARTS
from offload.errors import DamagedFile, StorageError
from offload.files import storage_errors, sync_folder
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.trace.records import TraceRequest
from profiles.files import write_atomically

STEPS = 256
"""Iterations of a request that entropies are kept of; its counts are of all."""
SHOWN = 4
"""Requests whose single iterations are kept."""
FORMAT = 1

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """Routing of R requests of a model with L layers of E experts.

    Attributes:
        names: [R], of the requests.
        top_k: Experts that a token uses.
        decoded: [R] int64, iterations of each request: decoded tokens.
        counts: [2, L, E] int64, how often a token of a prompt, and a decoded one, chose each expert.
        steps: [R] int64, of them how many have entropies: the first `STEPS`.
        fine: [N, L] float32, entropies in nats of single iterations, request by request; N is the sum of `steps`.
        coarse: [R, L] float32, entropies of the probabilities of the request's first `steps` iterations added up.
        chosen: [R, L] float32, entropies of how often each expert was chosen in them.
        coarse_by_step / chosen_by_step: [N] float32, of the first 1, 2, ... iterations; means over layers.
        shown: [S] int64, requests of which there is more:
        shown_counts: [S, L, E] int64, how often each of their decoded tokens chose each expert.
        shown_step: [M, 2] int64, place in `shown` and step, from 1, of each iteration that was kept.
        shown_map: [M, L, E] float16, its probabilities.
    """

    names: NDArray[np.str_]
    top_k: NDArray[np.int64]
    decoded: NDArray[np.int64]
    counts: NDArray[np.int64]
    steps: NDArray[np.int64]
    fine: Floats
    coarse: Floats
    chosen: Floats
    coarse_by_step: Floats
    chosen_by_step: Floats
    shown: NDArray[np.int64]
    shown_counts: NDArray[np.int64]
    shown_step: NDArray[np.int64]
    shown_map: Floats

    @property
    def layers(self) -> int:
        """L."""
        return int(self.counts.shape[1])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.counts.shape[2])

    def by_step(self, values: Floats) -> Floats:
        """Means over requests of `values` [N], by step: [T]. A request counts as long as it goes on."""
        total, count = np.zeros(STEPS), np.zeros(STEPS)
        begin = 0
        for steps in self.steps.tolist():
            total[:steps] += values[begin : begin + steps]
            count[:steps] += 1
            begin += steps
        longest = int(self.steps.max(initial=0))
        return np.asarray(total[:longest] / count[:longest])

    def to_bytes(self) -> bytes:
        """As a file."""
        file = io.BytesIO()
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(file, format=np.array(FORMAT), **arrays)
        return file.getvalue()


class RoutingObserver:
    """Watches the requests of an engine, one at a time; `take` says what the last one's routing was.

    While a token is decoded it only copies. Its memory, 2 bytes for each expert and step, is not in the budget.
    """

    wants_residual = False

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._maps = np.zeros((STEPS, layers, experts), np.float16)
        self._chosen = np.zeros((STEPS, layers, top_k), np.int64)
        self._now = np.zeros((layers, top_k), np.int64)
        self._rows = np.arange(layers)[:, None]
        self._counts = np.zeros((2, layers, experts), np.int64)
        self._request = 0
        self._decoded = 0
        self._prompt = True

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Observer`."""
        if forward.request != self._request:
            self._request = forward.request
            self._decoded = 0
            self._counts[:] = 0
        self._prompt = forward.phase == Phase.PREFILL

    def routed(self, routing: Routing) -> None:
        """See `Observer`."""
        layer = routing.layer
        if self._prompt:
            experts = self._counts.shape[2]
            self._counts[Phase.PREFILL, layer] += np.bincount(routing.chosen.ravel(), minlength=experts)
            return
        self._now[layer] = routing.chosen[0]
        if self._decoded < STEPS:
            self._maps[self._decoded, layer] = routing.probabilities[0]

    def end_pass(self, outcome: PassOutcome) -> None:
        """See `Observer`."""
        if self._prompt:
            return
        self._counts[Phase.DECODE, self._rows, self._now] += 1  # An expert is chosen once by a token.
        if self._decoded < STEPS:
            self._chosen[self._decoded] = self._now
        self._decoded += 1

    def take(self, name: str) -> RoutingRecord:
        """The routing of the last request, under this name."""
        steps = min(self._decoded, STEPS)
        maps = self._maps[:steps].astype(np.float32)
        picked = np.zeros(maps.shape, np.float32)
        np.put_along_axis(picked, self._chosen[:steps], 1, axis=2)
        fine = entropy(maps)
        coarse, chosen = entropy(np.cumsum(maps, axis=0)), entropy(np.cumsum(picked, axis=0))
        layers, experts = maps.shape[1:]
        kept = [1 << power for power in range(steps.bit_length())]
        return RoutingRecord(
            names=np.array([name]),
            top_k=np.array(self._chosen.shape[2]),
            decoded=np.array([self._decoded]),
            counts=self._counts.copy(),
            steps=np.array([steps]),
            fine=fine,
            coarse=coarse[-1:] if steps else np.zeros((1, layers), np.float32),
            chosen=chosen[-1:] if steps else np.zeros((1, layers), np.float32),
            coarse_by_step=coarse.mean(axis=1),
            chosen_by_step=chosen.mean(axis=1),
            shown=np.array([0]),
            shown_counts=self._counts[Phase.DECODE][None].copy(),
            shown_step=np.array([(0, step) for step in kept], np.int64).reshape(-1, 2),
            shown_map=self._maps[[step - 1 for step in kept]].reshape(-1, layers, experts).copy(),
        )


def entropy(weights: Floats) -> NDArray[np.float32]:
    """Of the last axis, scaled to a sum of 1, in nats; 0 log 0 is 0, and so is the entropy of nothing."""
    share = weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.float32(1e-30))
    logs = np.log(np.where(share > 0, share, 1))
    return np.asarray(-(share * logs).sum(axis=-1), np.float32)


def joined(records: Sequence[RoutingRecord]) -> RoutingRecord:
    """All requests of some records of one model, in their order; single iterations only of the first `SHOWN`."""
    shown, counts, step, maps = [], [], [], []
    for number, one in enumerate(records[:SHOWN]):
        shown.append(number)
        counts.append(one.shown_counts[0])
        step += [(number, at) for at in one.shown_step[:, 1].tolist()]
        maps.append(one.shown_map)

    def all_of(name: str) -> Any:
        return np.concatenate([getattr(one, name) for one in records])

    return RoutingRecord(
        names=all_of("names"),
        top_k=records[0].top_k,
        decoded=all_of("decoded"),
        counts=np.sum([one.counts for one in records], axis=0),
        steps=all_of("steps"),
        fine=all_of("fine"),
        coarse=all_of("coarse"),
        chosen=all_of("chosen"),
        coarse_by_step=all_of("coarse_by_step"),
        chosen_by_step=all_of("chosen_by_step"),
        shown=np.array(shown, np.int64),
        shown_counts=np.stack(counts),
        shown_step=np.array(step, np.int64).reshape(-1, 2),
        shown_map=np.concatenate(maps),
    )


def routing_of(requests: Iterable[TraceRequest], layers: int, experts: int, top_k: int) -> RoutingRecord | None:
    """The same of recorded requests; None if no token was decoded in them."""
    observer = RoutingObserver(layers, experts, top_k)
    records = []
    for number, request in enumerate(requests, 1):
        for one in request.passes:
            tokens = one.token_ids.tolist()
            observer.begin_pass(
                ForwardPass(one.phase, number, tokens, one.position, one.embedding.astype(np.float32))
            )
            chosen = one.chosen.astype(np.int32)
            for layer in range(layers):
                observer.routed(Routing(layer, one.probabilities[layer], chosen[layer], None, None))
            observer.end_pass(PassOutcome(0, 0, np.zeros(layers, np.int64), None, ()))
        if any(one.phase == Phase.DECODE for one in request.passes):
            records.append(observer.take(request.name))
    return joined(records) if records else None


# The files of a run.


def save_part(path: Path, record: RoutingRecord) -> None:
    """Keep a request's routing at `path`: `RunFolder.routing_part`.

    Raises:
        StorageError: It cannot be written.
    """
    write_atomically(path, record.to_bytes())


def write_routing(run: Path, *, complete: bool) -> None:
    """Put all requests so far into ``routing.npz``; of a complete run their own files go.

    Raises:
        StorageError: It cannot be written, or one cannot be read.
    """
    parts = run / ROUTING_PARTS
    record = _joined_parts(parts)
    if record is None:
        return
    write_atomically(run / ROUTING, record.to_bytes())
    sync_folder(run)
    if complete:
        # In one step: while the folder is there, it has all of them.
        over = run / f".{ROUTING_PARTS}.over"
        with storage_errors("the routing", over):
            shutil.rmtree(over, ignore_errors=True)
            parts.rename(over)
            shutil.rmtree(over, ignore_errors=True)


def read_routing(run: Path) -> RoutingRecord | None:
    """The routing of a run, also of one that was killed; None if it has none.

    Raises:
        StorageError: It cannot be read, or is damaged.
    """
    record = _joined_parts(run / ROUTING_PARTS)
    if record is None and (run / ROUTING).exists():
        record = _read(run / ROUTING)
    return record


def _joined_parts(folder: Path) -> RoutingRecord | None:
    records = [_read(path) for path in sorted(folder.glob("[0-9]*.npz"))]
    records = [one for one in records if one.decoded.sum()]
    return joined(records) if records else None


def _read(path: Path) -> RoutingRecord:
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                raise DamagedFile(f"{path} was written by another version of finemoe", "evaluate again")
            record = RoutingRecord(**{field.name: file[field.name] for field in fields(RoutingRecord)})
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedFile(f"{path} is damaged", "evaluate again") from error
    if not _fits(record):
        raise DamagedFile(f"{path} is damaged", "evaluate again")
    return record


def _fits(record: RoutingRecord) -> bool:
    """Whether the shapes go together."""
    try:
        _, layers, experts = record.counts.shape
        requests, total = len(record.names), int(record.steps.sum())
        shown, maps = len(record.shown), len(record.shown_map)
        wanted: dict[str, tuple[int, ...]] = {
            "decoded": (requests,),
            "steps": (requests,),
            "fine": (total, layers),
            "coarse": (requests, layers),
            "chosen": (requests, layers),
            "coarse_by_step": (total,),
            "chosen_by_step": (total,),
            "shown_counts": (shown, layers, experts),
            "shown_step": (maps, 2),
            "shown_map": (maps, layers, experts),
        }
    except (ValueError, TypeError):
        return False
    fits = all(getattr(record, name).shape == shape for name, shape in wanted.items())
    return fits and bool((record.steps <= STEPS).all())
