"""Holding the conversations: engines open side by side, one of which answers at a time.

Every combination of policy and budget has an engine, and so an expert cache and a policy, of its own. They take
turns conversation by conversation, another one first each time: whatever else slows the machine down for a while
slows all of them. Where not all engines fit into memory at once, they go group by group.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import psutil

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.evaluation.arrivals import Clock, queued
from finemoe_cli.evaluation.engines import EvalEngine, Progress
from finemoe_cli.evaluation.exact import KEPT, RESIDENT, replays
from finemoe_cli.evaluation.folder import LEARNT, LOG, PERPLEXITY, REPLAYED, TOKENS, Finished, Row, RunFolder
from finemoe_cli.evaluation.metrics import COUNTS, intervals
from finemoe_cli.evaluation.perplexity import Window, count_tokens, read_window, windows
from finemoe_cli.evaluation.plan import Combination, Plan
from finemoe_cli.signals import interrupts
from offload.errors import ContextOverflow, ExpertReadError, FinemoeError
from offload.files import storage_errors

LEARN_ONCE = ("auto", "promoe", "finemoe")
"""Policies whose engine keeps what it learns: it learns once, and every budget begins with a copy."""
LEARN_EACH = ("moe-infinity",)
"""Policies that know only what they have seen since they were opened: each engine of theirs sees the history."""
_MEMORY_SHARE = 0.9


class Stopped(Exception):
    """Interrupted; what is finished is kept."""


class Runner:
    """Does what a plan says.

    Args:
        folder: Where the rows go.
        sitting: How often the run was begun or gone on with; each row says in which it was made.
        side_by_side: So many engines open at once; None for as many as memory has room for.
        opening: Told of the progress of opening a model.
        opened: Told what each engine said when it was opened, by the name of its combination; may raise.
        progress: Told of stages ``history``, ``evaluate`` and ``check``, in conversations, and ``perplexity``, in
            windows.
        warn: Told of what could not be answered, one line each.

    Attributes:
        groups: Names of the combinations that took turns.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        *,
        sitting: int,
        side_by_side: int | None,
        opening: Progress,
        opened: Callable[[str, dict[str, Any]], None],
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._sitting = sitting
        self._side_by_side = side_by_side
        self._opening = opening
        self._opened_one = opened
        self._progress = progress
        self._warn = warn
        self._done = 0
        self._engines: dict[str, EvalEngine] = {}
        self._answering: EvalEngine | None = None
        self._clocks = {one.name: Clock(one.draw.arrivals) for one in plan.combinations}
        self._not_learnt: set[str] = set()
        self.groups: list[list[str]] = []

    def run(self, finished: Finished) -> None:
        """Hold every conversation that is not finished, with every combination.

        Raises:
            Stopped: There was a SIGINT; rows that are there stay.
            FinemoeError: An engine cannot be opened, or has ended; rows that are there stay.
        """
        plan = self._plan
        scored = self._folder.drop_unfinished(PERPLEXITY)
        waiting = [one for one in plan.combinations if self._left(one, finished) or self._unscored(one, scored)]
        self._done = len(finished)
        for row in self._folder.rows():
            if row.get("arrival_s") is not None:
                self._clocks[row["combination"]].free_s = row["arrival_s"] + row["e2e_s"]
        with interrupts.stopping(self._stop):
            try:
                for lesson in dict.fromkeys(one.lesson for one in waiting if one.policy in LEARN_ONCE):
                    self._learn_once(next(one for one in waiting if one.lesson == lesson))
                while waiting:
                    waiting = waiting[self._group(waiting, finished, scored) :]
                if plan.check_exact:
                    self._replay(self._folder.drop_unfinished(REPLAYED))
            except FinemoeError:
                # An engine that was told to stop may have said so with an error.
                self._check()
                raise

    def _stop(self) -> None:
        if self._answering is not None:
            self._answering.stop()

    def _check(self) -> None:
        if interrupts.seen:
            raise Stopped

    def _left(self, combination: Combination, finished: Finished) -> list[int]:
        return [n for n in range(len(combination.draw.test)) if (combination.name, n) not in finished]

    def _unscored(self, combination: Combination, scored: Finished) -> list[tuple[int, Window]]:
        """Windows of the text that are left, by number."""
        if self._plan.text is None:
            return []
        tokens = count_tokens(self._folder.path / TOKENS)
        found = windows(tokens, combination.engine.context)
        return [(n, window) for n, window in enumerate(found) if (combination.name, n) not in scored]

    def _group(self, waiting: Sequence[Combination], finished: Finished, scored: Finished) -> int:
        """Open as many as go together, hold their conversations, and close them. Returns how many they were."""
        with ExitStack() as stack:
            group: list[Combination] = []
            for combination in waiting:
                if group and not self._has_room(combination, len(group)):
                    break
                engine = stack.enter_context(self._opened(combination, self._knowledge(combination)))
                self._engines[combination.name] = engine
                self._opened_one(combination.name, engine.ready)
                group.append(combination)
            self.groups.append([combination.name for combination in group])
            for combination in [one for one in group if self._left(one, finished)]:
                history = combination.draw.history
                first = history if combination.policy in LEARN_EACH else []
                self._hold_uncounted(combination, [*first, *history[: self._plan.warmup]])
            self._tell("evaluate")
            for number in range(max(len(one.draw.test) for one in group)):
                turn = number % len(group)
                for combination in [*group[turn:], *group[:turn]]:
                    held = (combination.name, number) in finished
                    if number < len(combination.draw.test) and not held:
                        self._hold(combination, number)
                        self._done += 1
                        self._tell("evaluate")
            self._score({one.name: self._unscored(one, scored) for one in group})
            self._engines.clear()
        return len(group)

    def _score(self, left: dict[str, list[tuple[int, Window]]]) -> None:
        """The windows that are left of each combination of a group, in turns."""
        done, total = 0, sum(map(len, left.values()))
        for place in range(max(map(len, left.values()))):
            for name in [name for name in left if place < len(left[name])]:
                number, window = left[name][place]
                self._progress("perplexity", done, total)
                self._answering = self._engines[name]
                self._check()
                try:
                    tokens = read_window(self._folder.path / TOKENS, window)
                    said = self._answering.score(tokens, window.first)
                finally:
                    self._answering = None
                row = {"combination": name, "number": number, "tokens": len(tokens) - window.first} | said
                self._folder.append(row, PERPLEXITY)
                done += 1

    def _replay(self, finished: Finished) -> None:
        """Hold every conversation again with every expert in memory."""
        again = replays(self._plan)
        left = [(one, n) for one in again for n in range(len(one.draw.test)) if (one.name, n) not in finished]
        if not left:
            return
        with self._opened(again[0], self._knowledge(again[0])) as engine:
            self._opened_one(RESIDENT, engine.ready)
            self._engines = {one.name: engine for one in again}
            for done, (combination, number) in enumerate(left):
                self._progress("check", done, len(left))
                self._hold(combination, number)
            self._engines = {}

    def _has_room(self, combination: Combination, opened: int) -> bool:
        """Whether an engine can be open beside those that are, whatever they may still take of their budgets."""
        if self._side_by_side is not None:
            return opened < self._side_by_side
        facts = next(iter(self._engines.values())).ready
        if facts["device"] != "cpu":
            return False  # Its memory is not the host's.
        memory, engine = facts["memory"], combination.engine
        needed = engine.budget_bytes
        if needed is None:
            slots = ceil((engine.experts_fraction or 0) * facts["experts"])
            fixed = ("base_bytes", "dense_bytes", "kv_bytes", "workspace_bytes", "staging_bytes", "policy_bytes")
            needed = sum(memory[name] for name in fixed) + slots * memory["slot_bytes"]
        owed = sum(
            one.ready["memory"]["budget_bytes"] - one.ready["memory"]["rss_bytes"] for one in self._engines.values()
        )
        return bool(needed <= _MEMORY_SHARE * psutil.virtual_memory().available - owed)

    def _opened(self, combination: Combination, knowledge: Path) -> _Closing:
        self._check()
        config = replace(combination.engine, knowledge=knowledge)
        profile = combination.profile
        engine = EvalEngine(combination.name, config, profile, self._folder.path / LOG, self._opening)
        return _Closing(engine)

    def _knowledge(self, combination: Combination) -> Path:
        """The combination's own copy of what its policy learned from the history."""
        learnt = self._folder.path / LEARNT
        own = learnt / "engines" / combination.name
        with storage_errors("what was learnt", own):
            if not own.exists():
                source = learnt / combination.lesson
                own.parent.mkdir(parents=True, exist_ok=True)
                if source.exists():
                    shutil.copytree(source, own)
                else:
                    own.mkdir()
        return own

    def _learn_once(self, combination: Combination) -> None:
        """Let a policy learn from the history, unless it has in an earlier sitting."""
        place = self._folder.path / LEARNT / combination.lesson
        if place.exists() or not combination.draw.history:
            return
        begun = place.with_name(f"{place.name}.begun")
        with storage_errors("what is learnt", begun):
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir(parents=True)
        with self._opened(combination, begun) as engine:
            engine.learn()
            self._engines[combination.name] = engine
            self._hold_uncounted(combination, combination.draw.history)
            note = engine.keep_learnt()
            if note:
                self._warn(f"{combination.lesson}: {note}")
        self._engines.clear()
        with storage_errors("what was learnt", place):
            begun.rename(place)

    def _hold_uncounted(self, combination: Combination, conversations: Sequence[Conversation]) -> None:
        for number, conversation in enumerate(conversations):
            self._progress("history", number, len(conversations))
            try:
                for _ in self._answers(combination, conversation):
                    pass
            except (ContextOverflow, ExpertReadError) as error:  # There is nothing to learn from its rest.
                if conversation.id not in self._not_learnt:
                    self._not_learnt.add(conversation.id)
                    self._warn(f"history, {conversation.id}: {error.message}")

    def _hold(self, combination: Combination, number: int) -> None:
        conversation = combination.draw.test[number]
        turns = len(self._plan.turns_of(conversation))
        place = {
            "combination": combination.name,
            "seed": combination.draw.seed,
            "conversation": conversation.id,
            "number": number,
            "turns": turns,
            "sitting": self._sitting,
        }
        turn = 0
        try:
            # Policies do not change what routers choose: one combination's routing is that of all.
            kept = number if combination is self._plan.combinations[0] else None
            for turn, said in enumerate(self._answers(combination, conversation, kept), 1):
                row = request_row(said)
                if combination.name in self._clocks:
                    row = queued(row, self._clocks[combination.name].served(number, turn, row["e2e_s"]))
                self._keep(place | {"turn": turn} | row)
        except (ContextOverflow, ExpertReadError) as error:
            self._keep(place | {"turn": turn + 1, "error": error.message})
            self._warn(f"{combination.name}, {conversation.id}, turn {turn + 1}: {error.message}")

    def _keep(self, row: Row) -> None:
        if row["combination"] in self._clocks:
            self._folder.append(row)
        else:  # It was held again.
            self._folder.append({name: row[name] for name in KEPT if name in row}, REPLAYED)

    def _answers(
        self, combination: Combination, conversation: Conversation, kept: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Each turn's completion; a turn goes on from the model's own answers. kept: keep the routing under this
        number."""
        messages: list[dict[str, str]] = []
        if system := conversation.system or self._plan.system:
            messages.append({"role": "system", "content": system})
        for number, turn in enumerate(self._plan.turns_of(conversation)):
            messages.append({"role": "user", "content": turn})
            self._answering = engine = self._engines[combination.name]
            self._check()
            try:
                routing = None
                if kept is not None:
                    routing = self._folder.routing_part(kept, number + 1), f"{conversation.id}/{number + 1}"
                said = engine.chat(
                    messages,
                    combination.sampling,
                    anew=number == 0,
                    digests=self._plan.check_exact,
                    routing=routing,
                )
            finally:
                self._answering = None
            self._check()
            yield said
            messages.append({"role": "assistant", "content": said["text"]})

    def _tell(self, stage: str) -> None:
        self._progress(stage, self._done, sum(len(one.draw.test) for one in self._plan.combinations))


class _Closing:
    """An engine for the length of a block: closed at its end, and killed where that failed."""

    def __init__(self, engine: EvalEngine) -> None:
        self._engine = engine

    def __enter__(self) -> EvalEngine:
        return self._engine

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or kind is Stopped:
            self._engine.close()
        else:
            self._engine.kill()


def request_row(said: dict[str, Any]) -> Row:
    """What is kept of a completion."""
    kept = (
        "device",
        "kernels",
        "precision",
        "prompt_tokens",
        "reused_tokens",
        "completion_tokens",
        "token_ids",
        "token_times_s",
        "finish_reason",
        "ttft_s",
        "tpot_s",
        "e2e_s",
    )
    return {
        **{name: said[name] for name in kept},
        "itl_s": intervals(said["token_times_s"]),
        **{
            phase: {name: said["experts"][phase][name] for name in (*COUNTS, "hit_rate", "covered_rate")}
            for phase in ("prefill", "decode")
        },
        **{name: said["memory"][name] for name in ("budget_bytes", "peak_bytes", "slots")},
        **{name: said[name] for name in ("energy_j", "layers", "passes", "logits") if name in said},
    }
