"""An engine of an evaluation: ``python -m finemoe_cli.evaluation.worker PARENT``.

It has a process of its own, so that its peak of memory is its own and several can be open side by side. Orders
come in on stdin and answers go out on stdout, one JSON object a line, in turn. SIGTERM ends the running answer; the
end of stdin closes the engine, which keeps what its policy has learnt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from offload.child import ends_with_parent
from offload.config import EngineConfig, Sampling
from offload.errors import EngineBroken, FinemoeError

if TYPE_CHECKING:
    from finemoe_cli.evaluation.learning import Learning
    from finemoe_cli.evaluation.routing import RoutingObserver
    from finemoe_cli.evaluation.watching import RequestWatch
    from offload.runtime.engine import Engine


class Worker:
    """Carries out orders.

    Args:
        answers: Where the answers go.
    """

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._engine: Engine | None = None
        self._learning: Learning | None = None
        self._watch: RequestWatch | None = None
        self._routing: RoutingObserver | None = None
        self._stopped = False

    def serve(self, orders: Iterator[str]) -> None:
        """Until there are no more orders, or one cannot be answered any more."""
        with ExitStack() as stack:
            for line in orders:
                order = json.loads(line)
                try:
                    answer = self._carry_out(order, stack)
                except FinemoeError as error:
                    answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
                self._say(answer)
                if self._stopped:
                    return

    def stop(self) -> None:
        """End the running answer and then everything."""
        self._stopped = True
        if self._engine is not None:
            self._engine.stop()

    def _carry_out(self, order: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
        match order["do"]:
            case "open":
                return self._open(order, stack)
            case "learn":
                from finemoe_cli.evaluation.learning import Learning

                self._learning = Learning(self._opened())
                return {"learning": True}
            case "learnt":
                assert self._learning is not None
                return {"note": self._learning.keep(self._progress)}
            case "chat":
                return self._chat(order)
            case "score":
                nll = self._opened().score(order["token_ids"], order["first"])
                return {"nll": nll, "peak_bytes": self._opened().snapshot().memory.peak_bytes}
        raise AssertionError(order)

    def _open(self, order: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
        from finemoe_cli.evaluation.routing import RoutingObserver
        from finemoe_cli.evaluation.watching import RequestWatch
        from offload import Engine
        from offload.service.publish import gpu_probe, published
        from offload.trace.recorder import trace_model

        paths = {name: Path(order["config"][name]) for name in ("model", "packs_folder", "knowledge")}
        engine = stack.enter_context(Engine(EngineConfig(**order["config"] | paths), self._progress))
        boards = Path(order["boards"])
        stack.enter_context(published(engine, boards, command="eval", profile=order["profile"]))
        self._engine = engine
        around = engine.surroundings
        # Every engine has it, though one's is kept: it costs all of them the same.
        self._routing = RoutingObserver(around.layers, around.experts, around.top_k)
        engine.observe(self._routing)
        now = engine.snapshot()
        gpu = gpu_probe(now.device)
        self._watch = RequestWatch(engine, (lambda: None) if gpu is None else gpu.energy_j)
        return {
            "ready": {
                "model": now.model,
                "fingerprint": trace_model(engine).fingerprint,
                "device": now.device,
                "kernels": now.kernels,
                "precision": now.precision,
                "context": engine.context,
                "memory": {name: getattr(now.memory, name) for name in now.memory.__slots__},
                "experts": len(engine.view().state),
            }
        }

    def _chat(self, order: dict[str, Any]) -> dict[str, Any]:
        engine = self._opened()
        if self._stopped:
            raise EngineBroken("the engine was stopped")
        if order["anew"]:
            engine.forget()
        watch = self._watch
        assert watch is not None
        watch.begin(digests=order["digests"])
        completion = engine.chat(order["messages"], Sampling(**order["sampling"]), on_logits=watch.passed)
        if self._learning is not None and not self._stopped:
            self._learning.take()
        seen = watch.finish()
        if order["routing"] is not None and not self._stopped:
            from finemoe_cli.evaluation.routing import save_part

            assert self._routing is not None
            save_part(Path(order["routing"]["path"]), self._routing.take(order["routing"]["name"]))
        return {"done": completion.to_dict() | seen}

    def _opened(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._say({"stage": stage, "progress": done, "total": total})

    def _say(self, what: dict[str, Any]) -> None:
        self._answers.write(json.dumps(what) + "\n")
        self._answers.flush()


def main() -> None:
    """Carry out the orders on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints is no answer.
    worker = Worker(answers)

    def terminate(signum: int, frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, terminate)
    if not ends_with_parent(int(sys.argv[1]), signal.SIGTERM):
        return
    try:
        worker.serve(iter(sys.stdin.readline, ""))
    except BrokenPipeError:
        os._exit(1)  # Whoever asked is gone, and stdout cannot be flushed.


if __name__ == "__main__":
    main()
