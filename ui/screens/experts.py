"""All experts one by one, and the routing of the last replies token by token."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer

from offload.telemetry.frame import TokenRecord
from ui.panes.expert_detail import ExpertDetail
from ui.panes.expert_map import ExpertMap
from ui.panes.expert_table import ExpertTable
from ui.panes.history import FrameHistory, Oracle
from ui.panes.oracle import reply_oracle
from ui.panes.token_routing import TokenRouting, TokenText

_SECONDS = 0.25
_WIDE = 110


class ExpertsScreen(Screen[None]):
    """The list or the map of all experts at the left, a token's routing at the right; narrow, one of them.

    Args:
        history: Kept up to date by whoever opened the screen, which looks at it four times a second.
        token_text: Gives the text of a token, where that is known.
        ascii: Draw with ASCII characters only.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "close", "Back"),
        Binding("left", "step(-1)", "Token back", key_display="←", priority=True),
        Binding("right", "step(1)", "Token on", key_display="→", priority=True),
        Binding("home", "edge(0)", "First", show=False, priority=True),
        Binding("end", "edge(-1)", "Latest", show=False, priority=True),
        Binding("ctrl+left,left_square_bracket", "reply(-1)", "Reply back", show=False),
        Binding("ctrl+right,right_square_bracket", "reply(1)", "Reply on", show=False),
        Binding("s", "sort", "Sort"),
        Binding("g", "group", "Group"),
        Binding("m", "map", "Map"),
        Binding("t", "turn", "Turn"),
        Binding("f5", "freeze", "Freeze"),
    ]

    DEFAULT_CSS = """
    ExpertsScreen {
        layout: vertical;
        & #experts-body { height: 1fr; }
        & .half { height: 1fr; width: 1fr; padding: 0 1; }
        & ExpertMap { display: none; }
        &.-map ExpertMap { display: block; }
        &.-map ExpertTable { display: none; }
        & ExpertDetail { margin-top: 1; }
        &.-narrow #experts-token { display: none; }
        &.-narrow.-turned #experts-token { display: block; }
        &.-narrow.-turned #experts-all { display: none; }
    }
    """

    def __init__(
        self,
        history: FrameHistory,
        token_text: TokenText | None = None,
        *,
        ascii: bool = False,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._live = self._history = history
        self._token_text = token_text
        self._ascii = ascii
        self._number: int | None = None
        self._drawn: tuple[int, float, int, bool] | None = None
        self._oracles: dict[tuple[int, int, int], Oracle] = {}
        self._asked: tuple[int, int, int] | None = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="experts-body"):
            with Vertical(id="experts-all", classes="half"):
                yield ExpertTable(ascii=self._ascii)
                yield ExpertMap(ascii=self._ascii)
                yield ExpertDetail(ascii=self._ascii)
            with Vertical(id="experts-token", classes="half"):
                yield TokenRouting(self._token_text, ascii=self._ascii)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one(ExpertTable).focus()
        self._look()
        self.set_interval(_SECONDS, self._look)

    def on_resize(self) -> None:
        self.set_class(self.size.width < _WIDE, "-narrow")

    # What is chosen

    @property
    def reply(self) -> list[TokenRecord]:
        """The records of the reply that the chosen token is of."""
        records = self._history.records
        if not records:
            return []
        chosen = next((record for record in records if record.number == self._number), records[-1])
        return self._history.reply(chosen.request)

    @property
    def index(self) -> int:
        """Of the chosen token in its reply; the latest where none was chosen or the chosen one is gone."""
        numbers = [record.number for record in self.reply]
        return numbers.index(self._number) if self._number in numbers else len(numbers) - 1

    def action_step(self, by: int) -> None:
        """The token before or after."""
        records = list(self._history.records)
        if not records:
            return
        numbers = [record.number for record in records]
        at = numbers.index(self._number) if self._number in numbers else len(numbers) - 1
        at = max(0, at + by)
        # Behind the last one, the latest is followed again.
        self._number = numbers[at] if at < len(numbers) - 1 else None
        self._show_token()

    def action_edge(self, index: int) -> None:
        """The reply's first token, or the latest of all."""
        reply = self.reply
        self._number = reply[0].number if reply and index == 0 else None
        self._show_token()

    def action_reply(self, by: int) -> None:
        """The last token of the reply before or after."""
        requests = sorted({record.request for record in self._history.records})
        if requests:
            at = requests.index(self.reply[0].request) + by
            self._number = self._history.reply(requests[max(0, min(len(requests) - 1, at))])[-1].number
            self._show_token()

    # What is seen

    def action_close(self) -> None:
        self.dismiss()

    def action_sort(self) -> None:
        self.query_one(ExpertTable).next_sort()

    def action_group(self) -> None:
        self.query_one(ExpertTable).next_group()

    def action_map(self) -> None:
        self.toggle_class("-map")
        self.query_one(ExpertMap).show(self._history)

    def action_turn(self) -> None:
        self.toggle_class("-turned")

    def action_freeze(self) -> None:
        self._history = self._live.frozen() if self._history is self._live else self._live
        self.query_one(ExpertTable).state = "frozen" if self._history is not self._live else ""
        self._look()

    def on_expert_table_chosen(self) -> None:
        self._show_detail()

    def _look(self) -> None:
        """Draws what is new."""
        if self._history.latest is None or not self.is_current:
            return
        seen = (self._history.generation, self._history.now, self._history.next_record, self._history is self._live)
        if seen == self._drawn:
            return
        self._drawn = seen
        self.query_one(ExpertTable).show(self._history)
        if self.has_class("-map"):
            self.query_one(ExpertMap).show(self._history)
        self._show_detail()
        self._show_token()

    def _show_detail(self) -> None:
        detail = self.query_one(ExpertDetail)
        detail.expert = self.query_one(ExpertTable).expert
        detail.show(self._history)

    def _show_token(self) -> None:
        reply = self.reply
        oracle = self._oracle(reply) if reply else None
        self.query_one(TokenRouting).show_token(reply, self.index if reply else 0, oracle)

    def _oracle(self, reply: list[TokenRecord]) -> Oracle | None:
        """The oracle's hits in the reply; where they are not known yet, a thread works them out."""
        frame, facts = self._history.latest, self._history.facts
        assert frame is not None and facts is not None
        key = (self._history.generation, reply[0].number, reply[-1].number)
        if key not in self._oracles and self._asked is None:
            self._asked = key
            work = partial(self._work_out, key, reply, facts.experts, frame.memory.slots)
            self.run_worker(work, thread=True, group="oracle", description="oracle")
        known = [oracle for (gen, first, _), oracle in self._oracles.items() if (gen, first) == key[:2]]
        return self._oracles.get(key) or (known[-1] if known else None)

    def _work_out(self, key: tuple[int, int, int], reply: list[TokenRecord], experts: int, slots: int) -> None:
        oracle = reply_oracle(reply, experts, slots)
        self.app.call_from_thread(self._worked_out, key, oracle)

    def _worked_out(self, key: tuple[int, int, int], oracle: Oracle) -> None:
        self._oracles = {old: known for old, known in self._oracles.items() if old[:2] != key[:2]} | {key: oracle}
        self._asked = None
        self._show_token()
