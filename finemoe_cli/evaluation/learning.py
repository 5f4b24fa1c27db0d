"""What policies learn from the history before they are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from offload.policy.knowledge import PROBES_FILE, Shape, knowledge_folder, save_probes
from offload.policy.probe_fitting import TooLittle, fit_probes
from offload.trace.recorder import Recorder, trace_model
from offload.trace.records import TraceRequest

if TYPE_CHECKING:
    from offload.runtime.engine import Engine

_FITTED = ("auto", "promoe")


class Learning:
    """Watches an engine answer the history. What its policy learns by itself is kept when the engine is closed;
    predictors are fitted here, as ``finemoe maps build`` does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._requests: list[TraceRequest] = []
        self._recorder: Recorder | None = None
        if engine.config.policy in _FITTED:
            self._recorder = Recorder(trace_model(engine), residuals=True)
            engine.observe(self._recorder)

    def take(self) -> None:
        """A request has been answered."""
        if self._recorder is not None:
            self._requests.append(self._recorder.take(f"history/{len(self._requests)}", ""))

    def keep(self, progress: Callable[[str, int, int], None]) -> str:
        """The history is over. Returns what could not be learnt, in one line; empty if all was.

        Raises:
            StorageError: It cannot be written.
        """
        root = self._engine.config.knowledge
        if self._recorder is None or root is None:
            return ""
        self._engine.unobserve(self._recorder)
        model = trace_model(self._engine)
        try:
            probes = fit_probes(model, self._requests, progress)
        except TooLittle as error:
            return error.message
        shape = Shape(model.fingerprint, model.name, model.layers, model.experts, model.hidden)
        save_probes(knowledge_folder(root, model.fingerprint) / PROBES_FILE, shape, probes)
        return ""
