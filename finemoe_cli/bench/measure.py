"""Measuring an engine, in the process that it is alone in."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finemoe_cli.bench.samples import Measured, Opened, Sample
from offload import Engine, EngineConfig, Sampling
from offload.errors import ModelError
from offload.memory.residency import RESIDENT
from offload.models.spec import read_spec
from offload.runtime.text import ChatTokenizer
from offload.store.calibrate import LANES, Calibration, measure_read_rate
from offload.store.open_store import open_store
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.telemetry.snapshot import Completion

_SHORT_PROMPT = 64
Progress = Callable[[str, int, int], None]


class Bench:
    """An engine that is opened to be measured. A context manager.

    Args:
        config: What to open.
        cold: The model's files are dropped from the page cache before.
        text: Where prompts are cut from.
        questions: What generations begin with, in turn.
        progress: Told of the stages of opening, and of ``"measure"``, repeats.
    """

    def __init__(
        self, config: EngineConfig, *, cold: bool, text: str, questions: Sequence[str], progress: Progress
    ) -> None:
        self._progress = progress
        if cold:
            drop_from_page_cache(config.model)
        self._config = config
        before = measure_disk(config, (config.lanes,) if config.lanes else LANES)
        self._disk_rates = [before.bytes_per_second]
        if cold:
            drop_from_page_cache(config.model)
        begin = time.perf_counter()
        self._engine = Engine(replace(config, lanes=before.lanes), progress)
        self._loaded_s = time.perf_counter() - begin
        now = self._engine.snapshot()
        self.opened = Opened(
            device=now.device,
            kernels=now.kernels,
            policy=now.policy,
            threads=torch.get_num_threads(),
            lanes=now.io.lanes,
            direct=now.io.direct,
            store=now.io.store,
            load_s=self._loaded_s,
            budget_bytes=now.memory.budget_bytes,
            slots=now.memory.slots,
            slot_bytes=now.memory.slot_bytes,
            record_bytes=before.record_bytes,
            experts=len(self._engine.view().state),
        )
        self._tokens = _Tokens(config.model, text, questions)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.close()

    def measure(
        self, prompt: int, generate: int, *, first: int, repeats: int, seed: int, warm: bool, routing: bool
    ) -> Measured:
        """Both tests.

        Args:
            prompt / generate: Tokens of each; 0 for none.
            first / repeats: The number of the first repeat, and how many there are.
            seed: Of the first repeat ever.
            warm: Each test goes once uncounted before, with other tokens, so that slots are full.
            routing: Generate everything once more, uncounted, and keep what the routers chose.
        """
        numbers = range(first, first + repeats)
        spare = first + repeats  # What no repeat of this process uses.
        total = repeats * (bool(prompt) + bool(generate))
        prompts: list[Sample] = []
        answers: list[Sample] = []
        if prompt:
            if warm:
                self._prompt(prompt, spare, seed)
            for number in numbers:
                prompts.append(self._prompt(prompt, number, seed))
                self._progress("measure", len(prompts), total)
        if generate:
            if warm:
                self._answer(generate, spare, seed)
            for number in numbers:
                answers.append(self._answer(generate, number, seed))
                self._progress("measure", len(prompts) + len(answers), total)
        peak = self._engine.snapshot().memory.peak_bytes
        after = measure_disk(self._config, (self.opened.lanes,), seed=1)
        disk_rates = [*self._disk_rates, after.bytes_per_second]
        chosen = []
        if routing:
            chosen = [
                self._routing(generate, number, seed, sample.token_ids)
                for number, sample in zip(numbers, answers, strict=True)
            ]
        return Measured(self.opened, prompts, answers, peak, disk_rates, chosen)

    def _prompt(self, tokens: int, number: int, seed: int) -> Sample:
        self._engine.forget()
        before = _faults()
        done = self._engine.generate_ids(
            self._tokens.prompt(tokens, number), Sampling(max_new_tokens=1, temperature=0, ignore_eos=True)
        )
        major, minor = _faults()
        assert done.ttft_s is not None
        return _sample(done, Phase.PREFILL, tokens, done.ttft_s, (major - before[0], minor - before[1]))

    def _answer(self, tokens: int, number: int, seed: int) -> Sample:
        self._engine.forget()
        faults: list[tuple[int, int]] = []
        resident: list[int] = []

        def see(token: int) -> None:
            if not faults:
                resident.extend(np.flatnonzero(self._engine.view().state == RESIDENT).tolist())
            faults.append(_faults())

        done = self._generate(tokens, number, seed, see)
        times = done.token_times_s
        counted = (faults[-1][0] - faults[0][0], faults[-1][1] - faults[0][1])
        sample = _sample(done, Phase.DECODE, len(times) - 1, times[-1] - times[0], counted)
        intervals = [after - before for before, after in pairwise(times)]
        return replace(sample, intervals=intervals, token_ids=list(done.token_ids), resident=resident)

    def _generate(self, tokens: int, number: int, seed: int, see: Callable[[int], None]) -> Completion:
        sampling = Sampling(max_new_tokens=tokens, seed=seed + number, ignore_eos=True)
        return self._engine.generate_ids(self._tokens.question(number), sampling, on_token=see)

    def _routing(self, tokens: int, number: int, seed: int, expected: list[int]) -> list[list[list[int]]]:
        watcher = _Watcher()
        self._engine.forget()
        self._engine.observe(watcher)
        try:
            done = self._generate(tokens, number, seed, lambda token: None)
        finally:
            self._engine.unobserve(watcher)
        assert list(done.token_ids) == expected, "the same seed gives the same tokens"
        return watcher.passes


class _Watcher:
    """Keeps what routers choose for decoded tokens."""

    wants_residual = False

    def __init__(self) -> None:
        self.passes: list[list[list[int]]] = []
        self._decoding = False

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Observer`."""
        self._decoding = forward.phase == Phase.DECODE
        if self._decoding:
            self.passes.append([])

    def routed(self, routing: Routing) -> None:
        """See `Observer`."""
        if self._decoding:
            self.passes[-1].append(routing.chosen[0].tolist())

    def end_pass(self, outcome: PassOutcome) -> None:
        """See `Observer`."""


class _Tokens:
    """Token ids for the tests: of text where the model has a tokenizer, else any."""

    def __init__(self, model: Path, text: str, questions: Sequence[str]) -> None:
        tokenizer = ChatTokenizer.open(model)
        self._text = [] if tokenizer is None else tokenizer.encode(text)
        self._vocabulary = read_spec(model).vocab_size
        self._questions = [_encoded(tokenizer, question) for question in questions] if tokenizer else []

    def prompt(self, count: int, number: int) -> list[int]:
        """`count` tokens, others for each `number` as long as the text reaches."""
        if not self._text:
            return [int(n) for n in np.random.default_rng(number).integers(0, self._vocabulary, count)]
        first = number * count
        return [self._text[(first + place) % len(self._text)] for place in range(count)]

    def question(self, number: int) -> list[int]:
        """What a generation begins with."""
        if not self._questions:
            return self.prompt(_SHORT_PROMPT // 2, number)
        return self._questions[number % len(self._questions)]


def _encoded(tokenizer: ChatTokenizer, question: str) -> list[int]:
    try:
        token_ids = tokenizer.encode_chat([{"role": "user", "content": question}])
    except ModelError:  # It has no chat template.
        token_ids = tokenizer.encode(question)
    return token_ids[-_SHORT_PROMPT:]


def drop_from_page_cache(model: Path) -> None:
    """Asks the system to forget what it has cached of a model's files; of others' open files it may refuse."""
    for path in sorted(model.iterdir()):
        if path.suffix in (".safetensors", ".finemoe") and path.is_file():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure_disk(config: EngineConfig, lanes: Sequence[int], seed: int = 0) -> Calibration:
    """How fast plain threads read the model's experts, others with another seed."""
    spec = read_spec(config.model)
    store = open_store(spec, CheckpointIndex.open(config.model), config.precision, packs_folder=config.packs_folder)
    try:
        return measure_read_rate(store, lanes, seconds_each=0.3, seed=seed)
    finally:
        store.close()


def _sample(done: Completion, phase: Phase, tokens: int, seconds: float, faults: tuple[int, int]) -> Sample:
    counts = done.experts.decode if phase == Phase.DECODE else done.experts.prefill
    return Sample(
        tokens=tokens,
        seconds=seconds,
        selections=counts.selections,
        hits=counts.resident + counts.prefetched,
        nbytes=counts.bytes_demand + counts.bytes_prefetch,
        stall_s=counts.stall_s,
        major_faults=faults[0],
        minor_faults=faults[1],
    )


def _faults() -> tuple[int, int]:
    """Page faults of this process so far: those that read from a disk, and the others."""
    usage: Any = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_minflt
