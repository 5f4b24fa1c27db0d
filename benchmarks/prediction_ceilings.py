"""What is lost to what: `auto` with one of its parts replaced by one that knows the future, and with less history.

    python -m benchmarks.prediction_ceilings TRACE [--budget 0.05 0.125 0.25 0.5] [--link 1.5] [--replay 20]

The trace is split and replayed as by `finemoe simulate`. Stall is given relative to `demand`, of

- `auto` as it is, and with predictors fitted from a half and a quarter of the history;
- `auto`'s reads ahead with MIN's eviction (what keeping the right experts would still bring);
- `auto`'s eviction with perfect reading ahead within 1, 2, 4 and all layers of a token (what foreseeing would);
- the same within one token beyond the running one, and `oracle`, which has both.

A bound of what any prediction can do with so many reads stands behind them: the link is never idle, and everything
that can be computed meanwhile is. It is (reads a token x time of one - time to compute), where that is positive.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finemoe_cli.simulation import slots_for, split_requests
from offload.policy.auto import Auto
from offload.policy.base import NOTHING, REFUSE, Decision, Fetch, Maker, Policy, Surroundings
from offload.policy.knowledge import Knowledge
from offload.policy.probe_fitting import fit_probes
from offload.policy.registry import make_policy
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.demand_only import DemandOnly
from offload.trace.file import Trace
from offload.trace.foresight import Belady, Future, Oracle
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing


class Half:
    """Two policies that see the same: one says what leaves, the other what is read ahead."""

    name = "half"
    note = ""
    decides_early = True
    looks_ahead = True
    wants_residual = True

    def __init__(self, keeps: Policy, reads: Policy) -> None:
        self._keeps, self._reads = keeps, reads

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Policy`."""
        self._keeps.begin_pass(forward)
        self._reads.begin_pass(forward)

    def routed(self, routing: Routing) -> None:
        """See `Policy`."""
        self._keeps.routed(routing)
        self._reads.routed(routing)

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        return self._reads.decide(layer)

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return self._keeps.victim(evictable, wanted, demand)

    def end_pass(self) -> None:
        """See `Policy`."""
        self._keeps.end_pass()
        self._reads.end_pass()


class Minimal(Belady):
    """MIN's eviction, also for reads ahead: never what is needed before the one that is read."""

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        victim = super().victim(evictable, wanted, demand)
        return REFUSE if not demand and self._next_use[victim] <= self._next_use[wanted] else victim


class Foreseeing(Belady):
    """Reads what the next `layers` layers need, in that order; only with `beyond` what the next token does."""

    def __init__(self, around: Surroundings, future: Future, layers: int, *, beyond: bool) -> None:
        super().__init__(around, future)
        self._ahead, self._beyond = layers, beyond

    def decide(self, layer: int) -> Decision:
        """See `Policy`."""
        around, needed, state = self.around, self._future.needed, self.around.residency.state
        room = 2 * around.link.count + 2 - around.link.in_flight
        if room <= 0:
            return NOTHING
        end = self._step + self._ahead
        if not self._beyond:
            end = min(end, self._step + around.layers - 1 - layer)
        fetch = [
            Fetch(expert, float(-step))
            for step in range(self._step, min(end, len(needed)))
            for expert in needed[step].tolist()
            if not state[expert]
        ]
        return Decision([], fetch[:room])


class Willing(Auto):
    """`auto`, which gives the slot that is worth least for whatever is asked: who asks knows that it is needed."""

    def victim(self, evictable: NDArray[np.int64], wanted: int, demand: bool) -> int:
        """See `Policy`."""
        return super().victim(evictable, wanted, True)


def with_min_eviction(future: Future, around: Surroundings) -> Policy:
    return Half(Minimal(around, future), Auto(around))


def with_foresight(future: Future, layers: int, beyond: bool, around: Surroundings) -> Policy:
    return Half(Willing(around), Foreseeing(around, future, layers, beyond=beyond))


def demand_only(around: Surroundings) -> Policy:
    return DemandOnly(Auto(around))


def learn(model: TraceModel, requests: Sequence[TraceRequest]) -> Knowledge:
    """Predictors, and the past as `auto` ends with it."""
    policy = Simulation(model, 2 * model.top_k, Timing(), partial(make_policy, "auto")).policy
    assert isinstance(policy, Auto)
    for request in requests:
        for one in request.passes:
            policy.begin_pass(
                ForwardPass(one.phase, 1, one.token_ids.tolist(), one.position, one.embedding.astype(np.float32))
            )
            for layer, chosen in enumerate(one.chosen.astype(np.int32)):
                policy.routed(Routing(layer, one.probabilities[layer].astype(np.float32), chosen, None, None))
            policy.end_pass()
    return Knowledge(fit_probes(model, requests), None, policy.past)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--budget", type=float, nargs="+", default=[0.05, 0.125, 0.25, 0.5], help="shares")
    parser.add_argument("--link", type=float, default=1.5, help="layers that are computed while an expert moves")
    parser.add_argument("--replay", type=int, help="held-out conversations that are replayed; all by default")
    options = parser.parse_args()
    with Trace.open(options.trace) as trace:
        model = trace.model
        learnt, (order, *_) = split_requests([trace.entries], 0.7, 1, 0, options.replay)
        history = [trace[number] for _, number in learnt]
        requests = [trace[number] for _, number in order]
    future = Future(requests, model.layers, model.experts, prefill=False)
    known = learn(model, history)
    cases: list[tuple[str, Knowledge, Maker]] = [("auto", known, Auto)]
    for part in (2, 4):
        cases.append((f"auto, 1/{part} of the history", learn(model, history[::part]), Auto))
    cases += [
        ("auto's eviction alone", known, demand_only),
        ("MIN evicts, auto reads ahead", known, partial(with_min_eviction, future)),
    ]
    cases += [
        (f"auto evicts, {words} foreseen", known, partial(with_foresight, future, layers, beyond))
        for words, layers, beyond in (
            ("1 layer", 1, False),
            ("2 layers", 2, False),
            ("4 layers", 4, False),
            ("the token", model.layers, False),
            ("a token and more", 2 * model.layers, True),
        )
    ]
    cases.append(("oracle", Knowledge(), partial(Oracle, future=future)))
    timing = Timing(read_s=options.link)
    print(f"{len(history)} requests of history, {len(requests)} replayed; an expert takes {options.link} layers")
    for share in options.budget:
        (whole,), _ = slots_for("demand", [share], model, Knowledge(), {}, charge=True)
        (left,), _ = slots_for("auto", [share], model, known, {}, charge=True)
        base = _run(model, requests, whole, timing, partial(make_policy, "demand"), Knowledge())
        print(f"\n{100 * share:g} %: {'stall':>38} {'hit rate':>9} {'reads':>7} {'bound':>7}")
        for words, knowledge, make in cases:
            slots = whole if words == "oracle" else left
            found = _run(model, requests, slots, timing, make, knowledge)
            reads = (found.decode.bytes_demand + found.decode.bytes_prefetch) / model.slot_bytes / found.tokens
            bound = max(0.0, reads * options.link - model.layers) * found.tokens / base.stall_s
            print(
                f"{words:36} {found.stall_s / base.stall_s:8.3f} {found.decode.hit_rate:9.3f} {reads:7.1f} "
                f"{bound:7.3f}",
                flush=True,
            )


def _run(
    model: TraceModel, requests: Sequence[TraceRequest], slots: int, timing: Timing, make: Maker, known: Knowledge
) -> Outcome:
    simulation = Simulation(model, slots, timing, make, copy.deepcopy(known))
    simulation.run(requests, prefill=False)
    return simulation.outcome()


if __name__ == "__main__":
    main()
