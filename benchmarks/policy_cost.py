"""What deciding costs: microseconds a layer of a decoded token that each policy takes on the engine's thread.

    python -m benchmarks.policy_cost [POLICY ...] [--trace FILE] [--slots 450] [--requests 4] [--trained]
                                     [--reference]

Requests run through the simulator, which drives the live engine's policy objects and fetcher. Without a trace they
are made up, in the demo model's shape: 30 layers of 60 experts, 4 a token, hidden size 576. Timed is what the
policy itself does, `routed`, `decide` and every `victim` that is asked of it; printed are the median and the 99th
percentile over layers of decoded tokens, the mean of each part, and the mean of what a token pays at its beginning
and end. A policy that does not look ahead is told of all layers at the end of a token.

With ``--trained``, `auto` and `promoe` have predictors, fitted from further requests of the same kind.

Compiled kernels are used as beside the fast decode kernels, or with ``--reference`` not, as beside transformers'.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from offload.config import POLICIES
from offload.policy import Decision, Policy, Surroundings, make_policy
from offload.policy.knowledge import Knowledge
from offload.policy.probe_fitting import fit_probes
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.simulator import Simulation, Timing
from tests.support.routing import synthetic_model, synthetic_requests

Result = TypeVar("Result")
PARTS = ("routed", "decide", "victim", "pass")


class Timed:
    """A policy with a stopwatch.

    Attributes:
        spent: Of each decoded token [L + 1, 4]: nanoseconds by layer and part; the last row is the pass's own.
    """

    def __init__(self, policy: Policy, layers: int, experts: int) -> None:
        self._policy = policy
        self._experts = experts
        self._now = np.zeros((layers + 1, len(PARTS)))
        self._decoding = False
        self.spent: list[NDArray[np.float64]] = []
        self.name = policy.name
        self.decides_early = policy.decides_early

    @property
    def note(self) -> str:
        return self._policy.note

    @property
    def looks_ahead(self) -> bool:
        return self._policy.looks_ahead

    @property
    def wants_residual(self) -> bool:
        return self._policy.wants_residual

    def begin_pass(self, forward: ForwardPass) -> None:
        self._decoding = forward.phase == Phase.DECODE
        self._now[:] = 0
        self._layer = -1
        self._took(-1, "pass", lambda: self._policy.begin_pass(forward))

    def routed(self, routing: Routing) -> None:
        self._layer = routing.layer
        self._took(routing.layer, "routed", lambda: self._policy.routed(routing))

    def decide(self, layer: int) -> Decision:
        return self._took(layer, "decide", lambda: self._policy.decide(layer))

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        layer = wanted // self._experts if demand else self._layer
        return self._took(layer, "victim", lambda: self._policy.victim(evictable, wanted, demand))

    def end_pass(self) -> None:
        self._took(-1, "pass", self._policy.end_pass)
        if self._decoding:
            self.spent.append(self._now.copy())

    def _took(self, layer: int, part: str, work: Callable[[], Result]) -> Result:
        began = perf_counter_ns()
        result = work()
        self._now[layer, PARTS.index(part)] += perf_counter_ns() - began
        return result


def measure(
    name: str,
    model: TraceModel,
    requests: Sequence[TraceRequest],
    slots: int,
    options: dict[str, float],
    knowledge: Knowledge,
) -> str:
    """One policy's row."""
    timed: list[Timed] = []

    def make(around: Surroundings) -> Policy:
        timed.append(Timed(make_policy(name, around), model.layers, model.experts))
        return timed[0]

    # A link as fast against the computation as the demo's, so that queues and victims are as many.
    timing = Timing(layer_s=0.9e-3, read_s=0.7e-3, lanes=2)
    simulation = Simulation(model, slots, timing, make, knowledge, options)
    gc.collect()
    gc.disable()
    simulation.run(requests)
    gc.enable()
    spent = np.stack(timed[0].spent[len(timed[0].spent) // 4 :]) / 1e3  # the first quarter warms up
    layers = spent[:, :-1].sum(axis=2)
    routed, decide, victim, _ = spent[:, :-1].mean(axis=(0, 1))
    own = spent[:, -1].sum(axis=1).mean()
    outcome = simulation.outcome()
    stall = outcome.stall_s / outcome.tokens * 1e3
    return (
        f"{name:20} {np.median(layers):8.1f} {np.percentile(layers, 99):8.1f} {routed:8.1f} {decide:8.1f} "
        f"{victim:8.1f} {own:8.1f} {outcome.decode.hit_rate:9.3f} {stall:9.1f}  {outcome.note}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", help="names of policies; all by default")
    parser.add_argument("--trace", type=Path, help="a recorded trace, with residuals")
    parser.add_argument("--slots", type=int, default=450, help="experts that can be resident")
    parser.add_argument("--requests", type=int, default=4, help="requests to run")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the policies")
    parser.add_argument("--trained", action="store_true", help="with predictors fitted from further requests")
    parser.add_argument("--reference", action="store_true", help="without compiled kernels")
    options = parser.parse_args()
    if not options.reference:
        import numba  # noqa: F401  # policies use compiled kernels where Numba is in memory already

    if options.trace is None:
        model = synthetic_model(layers=30, experts=60, top_k=4, hidden=576)
        requests = list(synthetic_requests(model, requests=options.requests, prompt=24, tokens=48))
        further = list(synthetic_requests(model, requests=10, prompt=24, tokens=48, seed=1))
    else:
        from offload.trace.file import Trace

        with Trace.open(options.trace) as trace:
            model = trace.model
            requests = [trace[number] for number in range(min(options.requests, len(trace)))]
            further = [trace[number] for number in range(len(requests), min(len(requests) + 10, len(trace)))]
    knowledge = Knowledge(fit_probes(model, further) if options.trained else None)
    given = {name: float(value) for name, _, value in (one.partition("=") for one in options.option)}
    print(
        f"{'us a layer':20} {'median':>8} {'p99':>8} {'routed':>8} {'decide':>8} {'victim':>8} {'a token':>8} ",
        end="",
    )
    print(f"{'hit rate':>9} {'stall ms':>9}")
    for name in options.policies or POLICIES:
        print(measure(name, model, requests, options.slots, given, knowledge), flush=True)


if __name__ == "__main__":
    main()
