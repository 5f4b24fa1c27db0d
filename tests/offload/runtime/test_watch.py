"""Telling the policy and the observers, and keeping the time of a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offload import Engine, EngineConfig
from offload.memory.residency import Residency
from offload.policy import Rates
from offload.policy.base import Blind
from offload.runtime.watch import Watch
from offload.telemetry.counters import Counters, Phase
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.trace.simulated_link import SimulatedLink
from offload.transfer.fetch import ExpertFetcher
from tests.support.checkpoints import Family, tiny_checkpoint
from tests.support.engines import greedy
from tests.support.policies import Table

LAYERS, EXPERTS, TOP_K = 2, 4, 2


class Listener(Blind):
    """A policy and an observer that write down what they hear."""

    def __init__(self, name: str, heard: list[str], wants_residual: bool = False) -> None:
        super().__init__(Table().around)
        self._name, self._heard = name, heard
        self.wants_residual = wants_residual
        self.outcome: PassOutcome | None = None

    def begin_pass(self, forward: ForwardPass) -> None:
        self._heard.append(f"{self._name} begin {forward.phase.name} {forward.request} {forward.position}")

    def routed(self, routing: Routing) -> None:
        self._heard.append(f"{self._name} layer {routing.layer}")

    def end_pass(self, outcome: PassOutcome | None = None) -> None:
        self._heard.append(f"{self._name} end")
        self.outcome = outcome


class Bench:
    def __init__(self) -> None:
        total = LAYERS * EXPERTS
        self.heard: list[str] = []
        self.rates = Rates(1.0, 1.0)
        self.counters = Counters(LAYERS, EXPERTS)
        link = SimulatedLink(lambda expert: 1.0, 1)
        self.fetcher = ExpertFetcher(Residency(total, total, total), link, self.counters, LAYERS, TOP_K, self.rates)
        self.policy = Listener("policy", self.heard)
        self.fetcher.policy = self.policy
        self.fetcher.phase = Phase.DECODE
        self.watch = Watch(self.policy, self.fetcher, self.counters, self.rates)

    def token(self, position: int = 0) -> None:
        self.watch.begin((1,), position, np.zeros(4, np.float32))
        for layer in range(LAYERS):
            probabilities = np.full((1, EXPERTS), 0.25, np.float32)
            self.watch.routed(Routing(layer, probabilities, np.array([[0, 1]], np.int32), None, None))
        self.watch.end(np.array([[0, 1], [2, 3]], np.int32))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_policy_hears_first(bench: Bench) -> None:
    bench.watch.add(Listener("observer", bench.heard))
    bench.watch.request = 7
    bench.token(3)
    of_both = ["begin DECODE 7 3", "layer 0", "layer 1", "end"]
    assert bench.heard == [f"{who} {what}" for what in of_both for who in ("policy", "observer")]


def test_who_left_hears_nothing(bench: Bench) -> None:
    observer = Listener("observer", bench.heard)
    bench.watch.add(observer)
    bench.watch.remove(observer)
    bench.watch.set_policy(Listener("other", bench.heard))
    bench.token()
    assert {line.split()[0] for line in bench.heard} == {"other"}
    assert bench.fetcher.policy is bench.watch.policy


def test_kinds_are_those_of_the_chosen(bench: Bench) -> None:
    observer = Listener("observer", bench.heard)
    bench.watch.add(observer)
    bench.fetcher.kind_of[:] = [3, 1, 0, 0, 0, 0, 2, 3]
    bench.token()
    assert observer.outcome is not None and observer.outcome.kinds is not None
    assert observer.outcome.kinds.tolist() == [[3, 1], [2, 3]]


def test_a_prompt_of_one_token_has_no_kinds(bench: Bench) -> None:
    """Although the decode kernels compute it."""
    observer = Listener("observer", bench.heard)
    bench.watch.add(observer)
    bench.fetcher.phase = Phase.PREFILL
    bench.token()
    assert observer.outcome is not None and observer.outcome.kinds is None


def test_a_stall_is_told_once(bench: Bench) -> None:
    observer = Listener("observer", bench.heard)
    bench.watch.add(observer)
    bench.counters.stall_ns[Phase.DECODE] = [5, 6]
    bench.watch.begin((1,), 0, np.zeros(4, np.float32))
    bench.counters.stall_ns[Phase.DECODE] += [10, 0]
    bench.watch.end(np.zeros((LAYERS, TOP_K), np.int32))
    assert observer.outcome is not None
    assert observer.outcome.stall_ns.tolist() == [10, 0]


def test_the_time_of_a_layer_is_that_of_decoding_without_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0, 8_000_000, 10**12, 10**12 + 8_000_000, 0, 4_000_000_000])
    monkeypatch.setattr("offload.runtime.watch.time.perf_counter_ns", lambda: next(times))
    bench.rates.layer_s = 1e-3
    bench.watch.begin((1,), 0, np.zeros(4, np.float32))
    bench.counters.stall_ns[Phase.DECODE, 0] += 2_000_000
    bench.watch.end(np.zeros((LAYERS, TOP_K), np.int32))
    assert bench.rates.layer_s == pytest.approx(1e-3 + 2e-3 / 16)  # 3 ms a layer, a sixteenth of the way
    bench.fetcher.phase = Phase.PREFILL
    before = bench.rates.layer_s
    bench.token()
    assert bench.rates.layer_s == before
    bench.fetcher.phase = Phase.DECODE
    bench.token()
    assert bench.rates.layer_s == pytest.approx(before * (1 + 3 / 16))  # an outlier counts for four times as much


class Checks:
    """An observer of real routers."""

    wants_residual = True

    def __init__(self) -> None:
        self.layers: list[int] = []

    def begin_pass(self, forward: ForwardPass) -> None:
        pass

    def routed(self, routing: Routing) -> None:
        self.layers.append(routing.layer)
        chosen = np.take_along_axis(routing.probabilities, routing.chosen.astype(np.int64), axis=1)
        assert np.allclose(routing.probabilities.sum(axis=1), 1, atol=1e-4)
        assert (np.diff(chosen, axis=1) <= 1e-6).all()
        assert routing.residual is not None and routing.residual.shape == (len(chosen), 64)

    def end_pass(self, outcome: PassOutcome) -> None:
        pass


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "mixtral", "phimoe", "olmoe", "deepseek_v2"])
def test_routers_of_every_family_are_heard(tmp_path: Path, family: Family) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family, top_k=2 if family == "phimoe" else 3)
    checks = Checks()
    config = EngineConfig(
        model=folder, experts_fraction=0.5, kernels="reference", device="cpu", context=64, lanes=1
    )
    with Engine(config) as engine:
        engine.observe(checks)
        done = greedy(engine, [5, 6, 7], 3)
        layers = engine.surroundings.layers
    assert checks.layers == list(range(layers)) * len(done.token_ids)
