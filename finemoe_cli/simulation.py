"""Replaying a trace under many policies, budgets, links and orders: what is run, in worker processes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from offload.child import ends_with_parent
from offload.config import POLICIES
from offload.errors import ConfigError, EngineBroken, TraceError
from offload.policy.base import Maker, Policy, Surroundings
from offload.policy.knowledge import Knowledge, Shape, policy_bytes_of
from offload.policy.registry import make_policy
from offload.trace.demand_only import DemandOnly
from offload.trace.file import Trace, TraceEntry
from offload.trace.foresight import FORESIGHT, Belady, Future, Oracle
from offload.trace.records import TraceModel, TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing

REFERENCES = ("demand", "belady")
"""Others are compared with them, so they run whether they were asked for or not."""
EVICTION_OF = ("auto", "finemoe")
"""Policies that read ahead of which the eviction alone is looked at too."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Number = tuple[int, int]
"""A request: which trace, and which of it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation. What it is made of is named by its place in the `Grid`.

    Attributes:
        slots: What the budget leaves for experts.
        demand_only: Without the policy's reads ahead.
    """

    policy: str
    budget: int
    link: int
    order: int
    slots: int
    demand_only: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """All that is to be simulated; goes to every worker.

    Attributes:
        traces: Files.
        held_out: Requests that are replayed, in each of the orders.
        timings: One for each link.
        prefill: Whether prompts move experts too.
        options: Parameters by policy.
        knowledge: What policies have learnt before.
        runs: In the order of the results.
    """

    traces: tuple[Path, ...]
    held_out: tuple[tuple[Number, ...], ...]
    timings: tuple[Timing, ...]
    prefill: bool
    options: dict[str, dict[str, float]]
    knowledge: Knowledge
    runs: tuple[Run, ...] = field(repr=False)


def plan_runs(
    policies: Sequence[str], slots: dict[str, list[int]], links: int, orders: int, *, demand_only: bool
) -> tuple[Run, ...]:
    """Every run that the answer needs, with those that it is compared with.

    Args:
        policies: Asked for.
        slots: Of every policy and both references, for each budget.
        demand_only: Without all reads ahead; otherwise evictions alone are run besides for `EVICTION_OF`, on the
            first link, as what they hit does not depend on it.
    """
    runs: dict[Run, None] = {}
    for order in range(orders):
        for budget in range(len(next(iter(slots.values())))):
            for link in range(links):
                for policy in (*policies, *(name for name in REFERENCES if name not in policies)):
                    if policy == "belady" and policy not in policies and link:
                        continue
                    alone = demand_only and policy not in REFERENCES
                    runs[Run(policy, budget, link, order, slots[policy][budget], alone)] = None
            for policy in policies:
                if policy in EVICTION_OF and not demand_only:
                    runs[Run(policy, budget, 0, order, slots[policy][budget], True)] = None
    return tuple(runs)


def slots_for(
    name: str,
    shares: Sequence[float | int],
    model: TraceModel,
    knowledge: Knowledge,
    options: dict[str, float],
    *,
    charge: bool,
) -> tuple[list[int], int]:
    """Slots that each budget leaves to a policy, and the bytes that were taken off for what it knows.

    Args:
        shares: Shares of all experts as fractions, or slots as whole numbers.
        charge: Whether to take anything off.
    """
    taken = 0
    if charge and name in POLICIES:
        taken = policy_bytes_of(shape_of(model), name, knowledge, options)
    total = model.layers * model.experts
    found = []
    for share in shares:
        whole = share if isinstance(share, int) else round(share * total)
        left = whole - -(-taken // model.slot_bytes)
        found.append(min(total, max(left, 2 * model.top_k)))
    return found, taken


def shape_of(model: TraceModel) -> Shape:
    """The model, as what is known of it names it."""
    return Shape(model.fingerprint, model.name, model.layers, model.experts, model.hidden)


def check_policy_options(name: str, model: TraceModel, knowledge: Knowledge, options: dict[str, float]) -> str:
    """Make a policy as a worker will, and give what it has to say of itself.

    Raises:
        ConfigError: It has no such option, or not with that value.
    """
    if name in FORESIGHT:
        if options:
            raise ConfigError(f"policy {name} has no options", f"leave --option {name}.{next(iter(options))} out")
        return ""
    asked = _Asked(options)
    made = Simulation(model, 2 * model.top_k, Timing(), partial(make_policy, name), copy.deepcopy(knowledge), asked)
    unknown = sorted(set(options) - asked.names)
    if unknown:
        known = ", ".join(sorted(asked.names)) or "none"
        raise ConfigError(f"policy {name} has no option '{unknown[0]}'", f"it has: {known}")
    return made.policy.note


def split_requests(
    entries: Sequence[Sequence[TraceEntry]], history: float, orders: int, seed: int, replay: int | None = None
) -> tuple[tuple[Number, ...], tuple[tuple[Number, ...], ...]]:
    """Which requests are learnt from, and which are replayed, in each order.

    The turns of a conversation stay together and in their order, as a later one says much of an earlier one.

    Args:
        entries: Of each trace.
        history: Share of the conversations that are learnt from.
        orders: How many; the first is the recorded one.
        replay: Conversations that each order replays, at most: others in each, as far as there are others.
    """
    conversations: dict[tuple[int, str], list[Number]] = {}
    for trace, of_trace in enumerate(entries):
        for number, entry in enumerate(of_trace):
            if entry.decoded_tokens:
                conversations.setdefault((trace, entry.name.rpartition("/")[0] or entry.name), []).append(
                    (trace, number)
                )
    groups = list(conversations.values())
    if not groups:
        raise TraceError("there is no decoded token in the trace", "record one: finemoe trace record")
    count = min(round(history * len(groups)), len(groups) - 1)
    learnt = set(np.random.default_rng([seed, 0]).permutation(len(groups))[:count].tolist())
    held_out = [group for place, group in enumerate(groups) if place not in learnt]
    in_orders = []
    some = min(replay or len(held_out), len(held_out))
    # Without `replay` nothing is drawn.
    drawn = np.arange(len(held_out)) if replay is None else np.random.default_rng([seed]).permutation(len(held_out))
    for order in range(orders):
        places = np.sort(np.roll(drawn, -order * some)[:some])
        if order:
            places = np.random.default_rng([seed, order]).permutation(places)
        in_orders.append(tuple(number for place in places for number in held_out[place]))
    return tuple(number for place in sorted(learnt) for number in groups[place]), tuple(in_orders)


def run_grid(grid: Grid, jobs: int, progress: Callable[[int], None]) -> list[Outcome]:
    """Run everything in worker processes; the outcomes in the order of `grid.runs`, the same whatever `jobs`.

    Args:
        progress: Told how many are done.

    Raises:
        TraceError: A request is damaged.
        EngineBroken: A worker was killed.
    """
    found: dict[int, Outcome] = {}
    with _one_thread_each(), _workers(grid, min(jobs, len(grid.runs))) as workers:
        with _interrupts_held_back():  # Processes that are started here inherit it.
            futures = {workers.submit(_simulate, run): number for number, run in enumerate(grid.runs)}
        try:
            for done in as_completed(futures):
                found[futures[done]] = done.result()
                progress(len(found))
        except BrokenProcessPool as error:
            raise EngineBroken("a process that simulates was ended from outside", "try fewer --jobs") from error
    return [found[number] for number in range(len(grid.runs))]


class _Asked(dict[str, float]):
    """Options that remember what they were asked for.

    Attributes:
        names: All that a policy looked for, given or not.
    """

    def __init__(self, options: dict[str, float]) -> None:
        super().__init__(options)
        self.names: set[str] = set()

    def get(self, key: str, default: float | None = None) -> float | None:  # type: ignore[override]
        self.names.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.names.add(str(key))
        return super().__contains__(key)


@contextmanager
def _workers(grid: Grid, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are told of `grid`; interrupted, or after a failure, they are ended at once."""
    context = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(jobs, context, _begin, (grid, os.getpid()))
    try:
        yield workers
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        workers.shutdown(cancel_futures=True)
        raise
    workers.shutdown()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Within the block a Ctrl-C waits; to processes that are started in it, none ever comes.

    They inherit the mask. It does not hold off this process, where another thread may take the signal.
    """
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Within the block, processes that are started compute with one thread: they share the cores already."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# In a worker


class _Bench:
    """What a worker keeps from run to run: the requests, and the future in the order that was simulated last."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.requests: dict[Number, TraceRequest] = {}
        self.model: TraceModel | None = None
        for number, path in enumerate(grid.traces):
            with Trace.open(path, cache_bytes=0) as trace:
                self.model = self.model or trace.model
                for one in sorted(set().union(*grid.held_out)):
                    if one[0] == number:
                        self.requests[one] = trace[one[1]]
        self._future: tuple[int, Future] | None = None

    def run(self, run: Run) -> Outcome:
        grid, model = self.grid, self.model
        assert model is not None
        simulation = Simulation(
            model,
            run.slots,
            grid.timings[run.link],
            self._maker(run),
            # Policies learn as they go, and one run must not see what another has learnt.
            copy.deepcopy(grid.knowledge),
            grid.options.get(run.policy, {}),
        )
        simulation.run([self.requests[one] for one in grid.held_out[run.order]], prefill=grid.prefill)
        return simulation.outcome()

    def _maker(self, run: Run) -> Maker:
        make: Maker = partial(make_policy, run.policy)
        if run.policy in FORESIGHT:
            make = partial(Belady if run.policy == "belady" else Oracle, future=self._future_of(run.order))
        return partial(_demand_only, make) if run.demand_only else make

    def _future_of(self, order: int) -> Future:
        if self._future is None or self._future[0] != order:
            assert self.model is not None
            requests = [self.requests[one] for one in self.grid.held_out[order]]
            made = Future(requests, self.model.layers, self.model.experts, prefill=self.grid.prefill)
            self._future = order, made
        return self._future[1]


def _demand_only(make: Maker, around: Surroundings) -> Policy:
    return DemandOnly(make(around))


_bench: _Bench | None = None


def _begin(grid: Grid, parent: int) -> None:
    """A worker begins. It ends with its parent, however that ends."""
    global _bench
    if not ends_with_parent(parent):
        os._exit(1)
    # Some policies compute with compiled kernels where Numba is in memory: now it is, for all of them.
    import offload.policy.kernels.gates  # noqa: F401

    _bench = _Bench(grid)


def _simulate(run: Run) -> Outcome:
    assert _bench is not None
    return _bench.run(run)
