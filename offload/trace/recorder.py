"""Records forward passes while the engine runs: an observer that copies what it is told.

It makes one `TraceRequest` at a time in memory; whoever drives the engine takes it when the answer is there and
hands it to a `offload.trace.file.TraceWriter`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offload.models.spec import read_spec
from offload.store.fingerprint import fingerprint
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.trace.records import TraceModel, TracePass, TraceRequest

if TYPE_CHECKING:
    from offload.runtime.engine import Engine

_LARGEST = float(np.finfo(np.float16).max)


def trace_model(engine: Engine) -> TraceModel:
    """What a trace has to know of the model that `engine` runs. The router weights are views of the engine's.

    Raises:
        CorruptCheckpoint: The model's files cannot be read any more.
    """
    spec, around = read_spec(engine.folder), engine.surroundings
    return TraceModel(
        name=spec.name,
        fingerprint=fingerprint(spec, CheckpointIndex.open(spec.folder)),
        layers=around.layers,
        experts=around.experts,
        top_k=around.top_k,
        hidden=around.hidden,
        slot_bytes=around.slot_bytes,
        routers=around.routers,
    )


class Recorder:
    """Keeps every forward pass of one request.

    Its memory is not in the engine's budget: about 4 KiB a token of a model with 1,800 experts, and with residuals
    4 bytes more for each layer and hidden unit.

    Args:
        model: Gives the shapes.
        residuals: Keep the residual stream, and what shared experts add, of decoded tokens.
        prompt_residuals: Keep the residual stream of prompts too, for each of their tokens.

    Attributes:
        wants_residual: See `Observer`; changes from pass to pass.
    """

    def __init__(self, model: TraceModel, *, residuals: bool = False, prompt_residuals: bool = False) -> None:
        self.wants_residual = False
        self._model = model
        self._residuals = {Phase.DECODE: residuals, Phase.PREFILL: prompt_residuals}
        self._request = 0
        self._passes: list[TracePass] = []
        self._pass = _Pass(model, 0, False)
        self._forward: ForwardPass | None = None
        self._token_ids: NDArray[np.int32] = np.zeros(0, np.int32)
        self._embedding: NDArray[np.float16] = np.zeros(0, np.float16)

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Observer`. What is left of an earlier request, one that failed, is dropped."""
        if forward.request != self._request:
            self._request = forward.request
            self._passes = []
        self.wants_residual = self._residuals[forward.phase]
        self._forward = forward
        self._token_ids = np.array(forward.token_ids, np.int32)
        self._embedding = _half(forward.embedding)
        tokens = len(self._token_ids)
        if tokens == 1 and self._pass.tokens == 1 and self._pass.with_residual == self.wants_residual:
            self._pass.begin()
        else:
            self._pass = _Pass(self._model, tokens, self.wants_residual)

    def routed(self, routing: Routing) -> None:
        """See `Observer`."""
        self._pass.take(routing)

    def end_pass(self, outcome: PassOutcome) -> None:
        """See `Observer`."""
        forward = self._forward
        assert forward is not None
        margins, chosen, probabilities, residual, shared = self._pass.finish()
        self._passes.append(
            TracePass(
                phase=forward.phase,
                position=forward.position,
                token_ids=self._token_ids,
                embedding=self._embedding,
                probabilities=probabilities,
                margins=margins,
                chosen=chosen,
                residual=residual,
                shared=shared,
                seconds=(outcome.ended_ns - outcome.began_ns) / 1e9,
                stall_s=(outcome.stall_ns / 1e9).astype(np.float32),
                reads=tuple(outcome.reads),
            )
        )
        self._forward = None

    def take(self, name: str, text: str = "") -> TraceRequest:
        """The request whose passes were seen last, which the recorder then forgets.

        Args:
            name: Where it comes from.
            text: The prompt's last user message.
        """
        passes, self._passes = self._passes, []
        return TraceRequest(name, text, tuple(passes))


class _Pass:
    """What is collected of one pass of T tokens.

    A single token's layers are kept in float32 and converted together at its end: that is many times as fast as
    one by one. Of a prompt, whose float32 would take much memory, each layer is converted as it comes.
    """

    def __init__(self, model: TraceModel, tokens: int, with_residual: bool) -> None:
        self.tokens = tokens
        self.with_residual = with_residual
        wide = np.float32 if tokens == 1 else np.float16
        layers = model.layers
        self._probabilities = np.zeros((layers, tokens, model.experts), wide)
        self._chosen = np.zeros((layers, tokens, model.top_k), np.int16)
        self._margins = np.zeros((layers, tokens), np.float16)
        self._shape = (layers, tokens, model.hidden)
        self._residual = np.zeros(self._shape, wide) if with_residual else None
        self._shared: NDArray[np.float32 | np.float16] | None = None
        self._saw_residual = self._saw_shared = False

    def begin(self) -> None:
        """Over again, with the same arrays."""
        self._saw_residual = self._saw_shared = False

    def take(self, routing: Routing) -> None:
        """One layer."""
        layer, single = routing.layer, self.tokens == 1
        self._probabilities[layer] = routing.probabilities
        self._chosen[layer] = routing.chosen
        if not single:
            self._margins[layer] = margins(routing.probabilities, routing.chosen)
        if self._residual is None:
            return
        if routing.residual is not None:
            self._saw_residual = True
            self._residual[layer] = routing.residual if single else _half(routing.residual)
        if routing.shared is not None:
            if self._shared is None:
                self._shared = np.zeros(self._shape, self._residual.dtype)
            self._saw_shared = True
            self._shared[layer] = routing.shared if single else _half(routing.shared)

    def finish(
        self,
    ) -> tuple[
        NDArray[np.float16],
        NDArray[np.int16],
        NDArray[np.float16],
        NDArray[np.float16] | None,
        NDArray[np.float16] | None,
    ]:
        """Margins, chosen, probabilities, residual and shared, as a `TracePass` has them."""
        residual = self._residual if self._saw_residual else None
        shared = self._shared if self._saw_shared else None
        if self.tokens != 1:
            return (
                self._margins,
                self._chosen,
                self._probabilities.astype(np.float16, copy=False),
                None if residual is None else residual.astype(np.float16, copy=False),
                None if shared is None else shared.astype(np.float16, copy=False),
            )
        found = margins(self._probabilities[:, 0], self._chosen[:, 0])[:, None]
        return (
            found.astype(np.float16),
            self._chosen.copy(),
            self._probabilities.astype(np.float16),
            None if residual is None else _half(residual),
            None if shared is None else _half(shared),
        )


def margins(probabilities: NDArray[np.float32], chosen: NDArray[np.integer]) -> NDArray[np.float32]:
    """Probability of the last expert chosen less that of the likeliest one left out, or 0 if there is none.

    Args:
        probabilities: [N, E].
        chosen: [N, K], likeliest first.

    Returns:
        [N] float32.
    """
    picked = chosen.astype(np.intp)
    last = np.take_along_axis(probabilities, picked[:, -1:], axis=1)[:, 0]
    rest = probabilities.copy()
    np.put_along_axis(rest, picked, 0, axis=1)
    return np.asarray(last - rest.max(axis=1))


def _half(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """As float16; what is too large for it becomes its largest number."""
    return np.asarray(np.clip(values, -_LARGEST, _LARGEST), np.float16)
