"""The engine: one model, opened within a memory budget, that answers.

Opening it goes from the outside in: read what the folder says, build the model without weights, plan the memory,
and only then read. Afterwards one thread at a time drives it; `stop`, `snapshot` and `set_budget` may be called
from any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from offload.config import EngineConfig, Sampling
from offload.errors import ConfigError, ContextOverflow, EngineBroken, ModelError
from offload.policy import Surroundings
from offload.runtime.generation import TokenSink, generate, generation_config
from offload.runtime.loaded import LoadedModel
from offload.runtime.loading import Progress
from offload.runtime.opening import load_model
from offload.runtime.scoring import score
from offload.runtime.text import ChatTokenizer
from offload.telemetry.counters import Phase
from offload.telemetry.routing import Observer
from offload.telemetry.snapshot import Completion, EngineView, ExpertCounts, Snapshot

Messages = Sequence[dict[str, str]]


class Engine:
    """A model that runs within a memory budget.

    Args:
        config: What to open, and how.
        progress: Told of what takes long: (stage, done, total), stages ``compile``, ``load``.

    Raises:
        ModelNotFound, UnsupportedModel, CorruptCheckpoint: The folder holds no model that can be run.
        BudgetTooSmall, BudgetTooLarge: The budget cannot be kept.

    Example::

        with Engine(EngineConfig(model=Path("demo"), experts_fraction=0.25)) as engine:
            print(engine.chat([{"role": "user", "content": "Hello!"}]).text)
    """

    def __init__(self, config: EngineConfig, progress: Progress | None = None) -> None:
        self.config = config
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._closed = False
        self._tokens = 0
        self._token_ids_in_cache: list[int] = []
        self._on_logits: Callable[[torch.Tensor], None] | None = None
        self._tokenizer = ChatTokenizer.open(config.model)
        self._loaded: LoadedModel = load_model(config, progress)
        self._loaded.route_forward(self._tap)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def model_name(self) -> str:
        """The model folder's name."""
        return self._loaded.spec.name

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self._loaded.spec.folder

    @property
    def context(self) -> int:
        """Positions of the key-value cache: prompt and answer together."""
        return self._loaded.cache.context

    def chat(
        self,
        messages: Messages,
        sampling: Sampling | None = None,
        on_text: Callable[[str], None] | None = None,
        on_logits: Callable[[torch.Tensor], None] | None = None,
    ) -> Completion:
        """Answer a conversation, ``[{"role": "user", "content": ...}, ...]``, with the model's chat template.

        Keys and values of an earlier call are reused as far as the conversations begin alike.

        Args:
            messages: The conversation so far.
            sampling: How tokens are chosen.
            on_text: Called with each piece of text as soon as it is certain, on the calling thread.
            on_logits: See `generate_ids`.

        Raises:
            ContextOverflow: The conversation does not fit into the context.
            ModelError: The model has no chat template.
            ExpertReadError: An expert could not be read; the engine can be used again.
        """
        return self._answer(self._require_tokenizer().encode_chat(messages), sampling, on_text, on_logits)

    def complete(
        self, prompt: str, sampling: Sampling | None = None, on_text: Callable[[str], None] | None = None
    ) -> Completion:
        """Continue `prompt` as plain text, without a chat template. Otherwise like `chat`."""
        return self._answer(self._require_tokenizer().encode(prompt), sampling, on_text, None)

    def generate_ids(
        self,
        token_ids: Sequence[int],
        sampling: Sampling | None = None,
        on_token: Callable[[int], None] | None = None,
        on_logits: Callable[[torch.Tensor], None] | None = None,
    ) -> Completion:
        """Continue a sequence of token ids; the text of the result is empty.

        Args:
            on_token: Called with each new token.
            on_logits: Called with the logits of each forward pass's last position, [V], before any processing.
        """
        return self._generate(list(token_ids), sampling or Sampling(), on_token or _ignore, on_logits)

    def score(self, token_ids: Sequence[int], first: int = 1) -> float:
        """Negative log likelihood, in nats, of ``token_ids[first:]`` together; the cache is empty afterwards.

        Raises:
            ContextOverflow: There are more than go through the model in one piece, or fewer than two.
            ExpertReadError: An expert could not be read; the engine can be used again.
        """
        with self._exclusive():
            self._token_ids_in_cache = []
            nll = score(self._loaded, token_ids, first)
        self._apply_changes_if_idle()
        return nll

    def count_tokens(self, messages: Messages) -> int:
        """How long a conversation is as a prompt, in tokens. From any thread.

        Raises:
            ModelError: The model has no chat template.
        """
        return len(self._require_tokenizer().encode_chat(messages))

    def stop(self) -> None:
        """Make the running call return within one token, with what there is. From any thread or signal handler."""
        self._stop.set()

    def set_budget(self, budget_bytes: int | None = None, experts_fraction: float | None = None) -> None:
        """Change the memory budget while the model stays loaded, even in the middle of an answer.

        The arena grows or shrinks before the next token; the text does not change.

        Raises:
            BudgetTooSmall, BudgetTooLarge: The budget cannot be kept; the old one stays.
        """
        self._loaded.propose_budget(budget_bytes, experts_fraction)
        self._apply_changes_if_idle()

    def set_policy(self, name: str) -> None:
        """Let another policy decide, from the next token on. The text does not change.

        Raises:
            ConfigError: There is no such policy.
        """
        self._loaded.propose_policy(name)
        self._apply_changes_if_idle()

    def warm(self, experts: Sequence[int]) -> None:
        """Start reading experts that may soon be needed, in this order, into slots that are free.

        Experts are named by ``layer * num_experts + expert``. Waits for a running answer to end.

        Raises:
            ConfigError: There is no such expert.
        """
        total = self._loaded.spec.total_experts
        if not all(0 <= expert < total for expert in experts):
            raise ConfigError("an expert to begin with does not exist", f"they are numbered from 0 to {total - 1}")
        with self._exclusive():
            self._loaded.fetcher.fill(experts)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of every forward pass from now on. Waits for a running answer to end."""
        with self._exclusive():
            self._loaded.watch.add(observer)

    def unobserve(self, observer: Observer) -> None:
        """Tell `observer` no more. Waits for a running answer to end."""
        with self._exclusive():
            self._loaded.watch.remove(observer)

    @property
    def surroundings(self) -> Surroundings:
        """What policies are made with: shapes, rates, router weights. Only to be read."""
        return self._loaded.around

    def view(self) -> EngineView:
        """The engine's own arrays, which change while it runs: for boards. From any thread, only to be read."""
        loaded = self._loaded
        return EngineView(
            state=loaded.residency.state,
            fresh=loaded.fetcher.fresh,
            counters=loaded.counters,
            link=loaded.around.link,
            policy=loaded.watch.policy,
        )

    def reset_counters(self) -> None:
        """Put all counters to zero. Waits for a running answer to end."""
        with self._exclusive():
            self._loaded.counters.reset()
            self._tokens = 0

    def keep_learnt(self) -> None:
        """Keep what the policy has learnt for the next process; `close` does so too. Waits for a running answer."""
        with self._exclusive():
            self._loaded.keep_learnt()

    def forget(self) -> None:
        """Drop all keys and values: the next call computes its whole prompt."""
        with self._exclusive():
            self._loaded.cache.truncate(0)
            self._token_ids_in_cache = []

    def snapshot(self) -> Snapshot:
        """The engine at this moment. From any thread; costs well under a millisecond."""
        loaded = self._loaded
        return Snapshot(
            model=loaded.spec.name,
            device=str(loaded.device),
            kernels=loaded.kernels,
            precision=loaded.precision,
            policy=loaded.watch.policy.name,
            memory=loaded.memory_use(),
            io=loaded.io_facts(),
            experts=self._counts(),
            prefill_layers=loaded.counters.by_layer(Phase.PREFILL),
            decode_layers=loaded.counters.by_layer(Phase.DECODE),
            resident=loaded.residency.resident_count,
            tokens=self._tokens,
        )

    def close(self) -> None:
        """Give memory, files and threads back. May be called twice; a running call is stopped first."""
        self._stop.set()
        with self._busy:
            if not self._closed:
                self._closed = True
                self._loaded.close()

    def _answer(
        self,
        token_ids: list[int],
        sampling: Sampling | None,
        on_text: Callable[[str], None] | None,
        on_logits: Callable[[torch.Tensor], None] | None,
    ) -> Completion:
        tokenizer = self._require_tokenizer()
        stream = tokenizer.stream(on_text or _ignore)
        completion = self._generate(token_ids, sampling or Sampling(), stream.push, on_logits)
        text = stream.finish()
        return Completion(**{**{name: getattr(completion, name) for name in completion.__slots__}, "text": text})

    def _generate(
        self,
        token_ids: list[int],
        sampling: Sampling,
        on_token: Callable[[int], None],
        on_logits: Callable[[torch.Tensor], None] | None,
    ) -> Completion:
        with self._exclusive():
            completion = self._generate_exclusively(token_ids, sampling, on_token, on_logits)
        self._apply_changes_if_idle()
        return completion

    def _generate_exclusively(
        self,
        token_ids: list[int],
        sampling: Sampling,
        on_token: Callable[[int], None],
        on_logits: Callable[[torch.Tensor], None] | None,
    ) -> Completion:
        loaded = self._loaded
        self._stop.clear()
        self._check_prompt(token_ids)
        reused = _common_prefix(token_ids[:-1], self._token_ids_in_cache)
        loaded.cache.truncate(reused)
        self._token_ids_in_cache = token_ids[:reused]

        def take(token: int) -> None:
            loaded.fetcher.phase = Phase.DECODE
            self._tokens += 1
            on_token(token)

        sink = TokenSink(take)
        room = loaded.cache.context - len(token_ids)
        config = generation_config(
            loaded.model, sampling, min(sampling.max_new_tokens, room), len(token_ids) - reused
        )
        before = self._counts()
        loaded.fetcher.phase = Phase.PREFILL
        loaded.watch.request += 1
        self._on_logits = on_logits
        try:
            generate(loaded.model, loaded.cache, token_ids, config, sampling, sink, self._stop.is_set, loaded.step)
        finally:
            self._on_logits = None
            loaded.fetcher.settle()
            # After a failure in mid-layer some layers may have one position more than others.
            filled = min(layer.length for layer in loaded.cache.layers)
            loaded.cache.truncate(filled)
            self._token_ids_in_cache = (token_ids + sink.token_ids)[:filled]
        times = sink.times
        return Completion(
            model=loaded.spec.name,
            device=str(loaded.device),
            kernels=loaded.kernels,
            precision=loaded.precision,
            policy=loaded.watch.policy.name,
            prompt_tokens=len(token_ids),
            reused_tokens=reused,
            completion_tokens=len(sink.token_ids),
            token_ids=tuple(sink.token_ids),
            text="",
            finish_reason=self._finish_reason(sink.token_ids, config),
            ttft_s=times.ttft_s,
            tpot_s=times.tpot_s,
            tokens_per_s=1 / times.tpot_s if times.tpot_s else None,
            e2e_s=times.e2e_s,
            memory=loaded.memory_use(),
            io=loaded.io_facts(),
            experts=self._counts() - before,
            token_times_s=tuple(round(token - times.started, 6) for token in times.tokens),
        )

    def _check_prompt(self, token_ids: list[int]) -> None:
        context = self._loaded.cache.context
        if not token_ids:
            raise ContextOverflow("the prompt is empty", "write something")
        if len(token_ids) >= context:
            raise ContextOverflow(
                f"the prompt has {len(token_ids)} tokens, the context has room for {context}, answer included",
                f"shorten it, or raise --context (the model was made for {self._loaded.spec.max_context})",
            )

    def _finish_reason(self, token_ids: list[int], config: Any) -> str:
        eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        if token_ids and token_ids[-1] in eos:
            return "stop"
        return "stopped" if self._stop.is_set() else "length"

    def _tap(self, logits: torch.Tensor) -> None:
        if self._on_logits is not None:
            self._on_logits(logits[0, -1].clone())

    def _counts(self) -> ExpertCounts:
        counters = self._loaded.counters
        return ExpertCounts(counters.phase(Phase.PREFILL), counters.phase(Phase.DECODE))

    def _apply_changes_if_idle(self) -> None:
        if self._busy.acquire(blocking=False):
            try:
                if not self._closed:
                    self._loaded.apply_changes()
            finally:
                self._busy.release()

    def _exclusive(self) -> threading.Lock:
        if self._closed:
            raise EngineBroken("the engine is closed")
        return self._busy

    def _require_tokenizer(self) -> ChatTokenizer:
        if self._tokenizer is None:
            raise ModelError(f"{self.model_name} has no tokenizer", "the folder needs a tokenizer.json")
        return self._tokenizer


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length


def _ignore(_: object) -> None:
    """For callers who do not want to be told."""
