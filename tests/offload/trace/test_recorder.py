"""The recorder, watching a real engine: what it keeps is what the engine's routers said."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload import Engine, Sampling
from offload.errors import ExpertReadError
from offload.models.spec import read_spec
from offload.store.fingerprint import fingerprint
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Observer, PassOutcome, Routing
from offload.trace.file import Trace, TraceHeader
from offload.trace.recorder import Recorder, margins, trace_model
from offload.trace.records import TraceModel, TracePass
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine
from tests.support.traces import assert_same_request

LAYERS, EXPERTS, TOP_K, HIDDEN = 3, 16, 4, 64
PROMPT = list(range(20, 50))
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", layers=LAYERS, experts=EXPERTS, top_k=TOP_K)


@pytest.fixture(scope="module", params=["fast", "reference"])
def opened(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Engine]:
    with open_engine(tiny, 0.4, request.param) as engine:
        yield engine


@pytest.fixture
def engine(opened: Engine) -> Engine:
    """An engine with nothing in its cache, that other tests drive too."""
    opened.forget()
    return opened


@contextmanager
def observed(engine: Engine, *observers: Observer) -> Iterator[None]:
    for observer in observers:
        engine.observe(observer)
    yield
    for observer in observers:
        engine.unobserve(observer)


class Copier:
    """An observer that keeps everything as it was told."""

    wants_residual = True

    def __init__(self) -> None:
        self.forwards: list[ForwardPass] = []
        self.routings: list[list[Routing]] = []
        self.outcomes: list[PassOutcome] = []

    def begin_pass(self, forward: ForwardPass) -> None:
        ids, embedding = tuple(forward.token_ids), forward.embedding.copy()
        self.forwards.append(ForwardPass(forward.phase, forward.request, ids, forward.position, embedding))
        self.routings.append([])

    def routed(self, routing: Routing) -> None:
        def copied(array: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return None if array is None else array.copy()

        self.routings[-1].append(
            Routing(
                routing.layer,
                routing.probabilities.copy(),
                routing.chosen.copy(),
                copied(routing.residual),
                copied(routing.shared),
            )
        )

    def end_pass(self, outcome: PassOutcome) -> None:
        self.outcomes.append(outcome)


def test_a_trace_has_what_the_routers_said(engine: Engine) -> None:
    model = trace_model(engine)
    recorder, copier = Recorder(model, residuals=True, prompt_residuals=True), Copier()
    with observed(engine, recorder, copier):
        ids = greedy(engine, PROMPT, NEW_TOKENS).token_ids
    request = recorder.take("here", "some text")
    assert (request.name, request.text) == ("here", "some text")
    passes = request.passes
    assert [each.phase for each in passes] == [Phase.PREFILL, *[Phase.DECODE] * (NEW_TOKENS - 1)]
    assert [each.position for each in passes] == [0, *range(30, 30 + NEW_TOKENS - 1)]
    assert [each.token_ids.tolist() for each in passes] == [PROMPT, *([token] for token in ids[:-1])]
    for each, forward, routings, outcome in zip(
        passes, copier.forwards, copier.routings, copier.outcomes, strict=True
    ):
        assert_recorded(each, forward, routings, outcome)
    fast = engine.snapshot().kernels == "fast"
    assert [each.shared is not None for each in passes] == [False, *[fast] * (NEW_TOKENS - 1)]
    assert sum(len(each.reads) for each in passes) > 0


def assert_recorded(
    each: TracePass, forward: ForwardPass, routings: Sequence[Routing], outcome: PassOutcome
) -> None:
    assert np.array_equal(each.embedding, forward.embedding.astype(np.float16))
    assert [routing.layer for routing in routings] == list(range(LAYERS))
    for layer, routing in enumerate(routings):
        assert np.array_equal(each.probabilities[layer], routing.probabilities.astype(np.float16))
        assert np.array_equal(each.chosen[layer], routing.chosen)
        assert np.array_equal(each.margins[layer], slow_margins(routing).astype(np.float16))
        for kept, told in ((each.residual, routing.residual), (each.shared, routing.shared)):
            assert (kept is None) == (told is None)
            if kept is not None and told is not None:
                assert np.array_equal(kept[layer], told.astype(np.float16))
    assert each.seconds == (outcome.ended_ns - outcome.began_ns) / 1e9
    assert np.array_equal(each.stall_s, (outcome.stall_ns / 1e9).astype(np.float32))
    assert each.reads == tuple(outcome.reads)
    shapes = {
        name: array.dtype.name
        for name in TracePass.__slots__
        if isinstance(array := getattr(each, name), np.ndarray)
    }
    assert shapes.pop("token_ids") == "int32" and shapes.pop("chosen") == "int16"
    assert shapes.pop("stall_s") == "float32" and set(shapes.values()) == {"float16"}


def slow_margins(routing: Routing) -> NDArray[np.float32]:
    found = []
    for probabilities, chosen in zip(routing.probabilities.tolist(), routing.chosen.tolist(), strict=True):
        rest = [p for expert, p in enumerate(probabilities) if expert not in chosen]
        found.append(np.float32(probabilities[chosen[-1]]) - np.float32(max(rest)))
    return np.array(found, np.float32)


@given(data=st.data(), experts=st.integers(1, 6), tokens=st.integers(0, 3))
def test_margins(data: st.DataObject, experts: int, tokens: int) -> None:
    chance = np.random.default_rng(data.draw(st.integers(0, 99)))
    top_k = data.draw(st.integers(1, experts))
    probabilities = chance.dirichlet(np.ones(experts), tokens).astype(np.float32).reshape(tokens, experts)
    order = np.argsort(-probabilities, axis=1)
    falling = np.sort(probabilities, axis=1)[:, ::-1]
    expected = falling[:, top_k - 1] - (falling[:, top_k] if top_k < experts else 0)
    found = margins(probabilities, order[:, :top_k].astype(np.int32))
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_residuals_are_kept_where_they_are_wanted(engine: Engine) -> None:
    model = trace_model(engine)
    kept = {}
    for residuals in (False, True):
        for of_prompts in (False, True):
            recorder = Recorder(model, residuals=residuals, prompt_residuals=of_prompts)
            engine.forget()
            with observed(engine, recorder):
                greedy(engine, PROMPT, 3)
            passes = recorder.take("x").passes
            kept[residuals, of_prompts] = [each.residual is not None for each in passes]
    assert kept == {
        (False, False): [False, False, False],
        (False, True): [True, False, False],
        (True, False): [False, True, True],
        (True, True): [True, True, True],
    }


def test_watching_changes_nothing(engine: Engine) -> None:
    alone = greedy(engine, PROMPT, NEW_TOKENS)
    engine.forget()
    with observed(engine, Recorder(trace_model(engine), residuals=True, prompt_residuals=True)):
        assert_same(greedy(engine, PROMPT, NEW_TOKENS), alone)


def test_of_a_second_turn_the_new_tokens_are_computed(engine: Engine) -> None:
    recorder = Recorder(trace_model(engine))
    with observed(engine, recorder):
        ids = [*PROMPT, *greedy(engine, PROMPT, 4).token_ids]
        recorder.take("a/1")
        greedy(engine, [*ids, 60, 61], 2)
    passes = recorder.take("a/2").passes
    # The answer's last token was chosen and never went in.
    assert (passes[0].position, passes[0].token_ids.tolist()) == (33, [ids[-1], 60, 61])
    assert [each.phase for each in passes] == [Phase.PREFILL, Phase.DECODE]


def test_a_taken_request_is_forgotten_and_one_not_taken_too(engine: Engine) -> None:
    recorder = Recorder(trace_model(engine))
    assert recorder.take("before").passes == ()
    with observed(engine, recorder):
        greedy(engine, PROMPT, 5)  # nobody takes this
        engine.forget()
        greedy(engine, PROMPT[:7], 2)
    assert [len(each.token_ids) for each in recorder.take("second").passes] == [7, 1]
    assert recorder.take("after").passes == ()


def test_a_pass_that_failed_is_not_kept(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    with open_engine(folder, 0.0, "fast") as engine:
        recorder = Recorder(trace_model(engine))
        engine.observe(recorder)
        greedy(engine, PROMPT, 2)
        recorder.take("whole")
        (weights,) = folder.glob("*.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        engine.forget()
        with pytest.raises(ExpertReadError):
            engine.generate_ids([5, 6, 7], Sampling(max_new_tokens=2))
        assert recorder.take("failed").passes == ()
        weights.write_bytes(whole)
        greedy(engine, PROMPT[:3], 2)
        assert [len(each.token_ids) for each in recorder.take("next").passes] == [3, 1]


def test_what_is_too_large_for_a_half_is_its_largest_number() -> None:
    model = TraceModel("tiny", "", 1, 2, 1, 3, 0, None)
    for tokens in (1, 2):
        recorder = Recorder(model, residuals=True, prompt_residuals=True)
        recorder.begin_pass(ForwardPass(Phase.DECODE, 1, range(tokens), 0, np.array([1e6, 0, 1], np.float32)))
        wide = np.full((tokens, 3), [-1e6, 2, 1e9], np.float32)
        probabilities = np.full((tokens, 2), [0.75, 0.25], np.float32)
        recorder.routed(Routing(0, probabilities, np.zeros((tokens, 1), np.int32), wide, wide))
        recorder.end_pass(PassOutcome(0, 1, np.zeros(1, np.int64), None, ()))
        (only,) = recorder.take("x").passes
        assert only.embedding.tolist() == [65504, 0, 1]
        assert only.residual is not None and only.shared is not None
        assert only.residual[0].tolist() == only.shared[0].tolist() == [[-65504, 2, 65504]] * tokens


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_other_families_through_a_file(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / family, family=family)  # type: ignore[arg-type]
    with open_engine(folder, 1.0, "reference") as engine:
        model = trace_model(engine)
        recorder = Recorder(model, residuals=True)
        engine.observe(recorder)
        greedy(engine, PROMPT, 3)
        request = recorder.take("x")
        Trace.write(tmp_path / "t.trace", model, TraceHeader(), [request])
        with Trace.open(tmp_path / "t.trace") as trace:
            assert_same_request(trace[0], request)
            trace.check_model(fingerprint(read_spec(folder), CheckpointIndex.open(folder)))
            assert trace.model.routers is not None
            # The kept routers say what was recorded: the experts chosen come of residual, norm and gate.
            assert_routers_agree(trace.model, trace[0].passes[-1])


def assert_routers_agree(model: TraceModel, each: TracePass) -> None:
    assert model.routers is not None and each.residual is not None
    for layer in range(model.layers):
        x = each.residual[layer, 0].astype(np.float64)
        norm, gate = (wide(bits[layer]) for bits in (model.routers.norm, model.routers.gate))
        logits = gate @ (norm * x / np.sqrt((x**2).mean() + model.routers.eps))
        odds = np.exp(logits - logits.max())
        assert np.abs(odds / odds.sum() - each.probabilities[layer, 0]).max() < 0.02


def wide(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
